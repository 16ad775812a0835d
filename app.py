"""The entry point of the app: style, menu, choice of model and run, then the page of the URL. Imports no
torch."""

from npd_core.plugins import load_plugins
from pages.shared import shell

load_plugins()
shell.configure_page()
page = shell.navigation()
shell.header(page.url_path)
page.run()
