"""The frame of the app: page list, header, and the choices that a link carries. Imports no torch."""

import streamlit as st

from pages.shared import shell

shell.dress()
page = st.navigation(shell.pages(), position=shell.menu())
shell.header(page.url_path)
page.run()
