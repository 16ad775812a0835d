"""The export of a run: files that work without this app, a report, and a link with a QR code."""

from __future__ import annotations

import base64
from functools import partial
from importlib.util import find_spec
from urllib.parse import urlencode, urlsplit

import streamlit as st

from npd_core.errors import NPDError
from npd_core.exports import MODEL_FORMATS
from npd_core.exports.qr_code import qr_code
from npd_core.runs.store import Run
from pages.shared import cache
from pages.shared.text import message

TITLES = {"safetensors": "Weights", "pt2": "PyTorch graph", "onnx": "ONNX"}
FOLDED = "The polarizer is folded into the neighboring layers."
WHOLE = "This defense changed the weights of the network; no layer was added."
LOCAL = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")


def downloads(run: Run) -> None:
    """Offer the files of an ended run; each is made when it is requested."""
    if not run.has_network:
        st.caption("This run has no repaired network, so there is nothing to export.")
        return
    st.write(
        "The repaired network as one file, with a short program that uses it without this app. "
        + (FOLDED if run.has_polarizer else WHOLE)
    )
    name = f"{run.request.model}-{run.id}"
    with st.grid("auto", min_column_width=220):
        for kind, what in MODEL_FORMATS.items():
            missing = kind == "onnx" and not (find_spec("onnx") and find_spec("onnxscript"))
            st.download_button(
                f"{TITLES[kind]} (.{kind})",
                b"" if missing else partial(cache.runs.model_archive, run.id, kind),
                f"{name}-{kind}.zip",
                "application/zip",
                key=f"take-{kind}",
                icon=":material/deployed_code:",
                width="stretch",
                on_click="ignore",
                disabled=missing,
                help="ONNX needs two more packages on the server: `pip install onnx onnxscript`."
                if missing
                else f"{what[0].upper()}{what[1:]}. Zip file with `use.py` and `about.json`.",
            )
        st.download_button(
            "Report (.html)",
            lambda: cache.runs.report(run.id),
            f"{name}.html",
            "text/html",
            key="take-report",
            icon=":material/description:",
            width="stretch",
            on_click="ignore",
            help="One file for any browser, offline: settings, curves, images, attributions, environment.",
        )


def home() -> str:
    """Return the URL of the app in the visitor's browser, without a page; "" where it is unknown."""
    here = (st.context.url or "").rstrip("/")
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    if here and base:
        # Streamlit's URL lacks the end of a base path that ends like the name of a page, as in "npd-lab".
        return urlsplit(here)._replace(path=f"/{base}").geturl()
    page = st.session_state.get("_page")
    return here.removesuffix(f"/{page}") if page else here


def share(page: str, **query: str) -> None:
    """Show the link to a page, to copy and as a QR code.

    Args:
        page: URL path of the page.
        query: values of its URL.
    """
    address = f"{home()}/{page}?{urlencode(query)}"
    st.code(address, language=None, wrap_lines=True)
    try:
        drawn = qr_code(address)
    except NPDError as error:
        st.caption(message(error))
        return
    data = base64.b64encode(
        drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).encode()
    ).decode()
    st.html(
        f"<img src='data:image/svg+xml;base64,{data}' alt='QR code of the link above' "
        "style='width: min(100%, 13rem); border-radius: 8px; display: block'>"
    )
    if (urlsplit(address).hostname or "localhost") in LOCAL:
        st.caption(
            "This link works only on this machine. For other devices, serve the app at an address that they "
            "can reach."
        )
