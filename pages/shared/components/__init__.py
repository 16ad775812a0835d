"""Components of the app: polarised light, the network drawing, live charts. Each is a .py, .js and .css file."""
