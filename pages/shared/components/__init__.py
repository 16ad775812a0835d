"""The app's own components: polarised light, the network drawing, live charts. Each is a .py, a .js and a .css file."""
