"""The frame of the app: page list, header, and the choices that a link carries. Imports no torch."""

import streamlit as st

from npd_core import paths
from pages.shared import frame

ICON = paths.assets() / "ui" / "favicon.png"
st.set_page_config(page_title="Neural Polarizer Lab", page_icon=str(ICON), layout="wide")
st.logo(str(paths.assets() / "ui" / "logo.svg"), size="large")

page = st.navigation(frame.pages(), position="top")
frame.header(page.url_path)
page.run()
