"""The entry point of the app: style, menu, choice of model and run, then the page of the URL. Imports no torch."""

from pages.shared import shell

shell.configure_page()
page = shell.navigation()
shell.header(page.url_path)
page.run()
