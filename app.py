"""The frame of the app: page list, header, and the choices that a link carries. Imports no torch."""

import streamlit as st

from pages.shared import frame

frame.dress()
page = st.navigation(frame.pages(), position=frame.menu())
frame.header(page.url_path)
page.run()
