"""Components of the app, each a .py, .js and .css file: light, network drawing, charts, painter and more."""
