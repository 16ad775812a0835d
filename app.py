"""The frame of the app: page list, header, and the choices that a link carries. Imports no torch."""

import streamlit as st

from npd_core import paths
from pages.shared import frame

st.set_page_config(page_title="Neural Polarizer Lab", page_icon=str(paths.assets() / "ui" / "favicon.png"), layout="wide")
st.logo(str(paths.assets() / "ui" / "logo.svg"), size="large")

page = st.navigation(
    [
        st.Page("pages/home.py", title="Start", icon=":material/wb_twilight:", default=True,
                help="What a backdoor is, and one recorded run of the filter that removes it."),
        st.Page("pages/lab.py", title="Lab", icon=":material/science:",
                help="Choose a backdoored model and a layer, then train a neural polarizer live."),
        st.Page("pages/predictions.py", title="Predictions", icon=":material/image_search:",
                help="Clean, triggered and purified images side by side, with what the network says."),
        st.Page("pages/attributions.py", title="Attributions", icon=":material/center_focus_strong:",
                help="Which pixels decide, before and after the polarizer, on one scale."),
        st.Page("pages/runs.py", title="Runs", icon=":material/history:",
                help="Every run on this machine: compare, download, open again."),
    ],
    position="top",
)
frame.header(page.url_path)
page.run()
