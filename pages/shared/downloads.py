"""What a visitor takes home of a run: files that work without this app, a report, and a link with its QR code."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from urllib.parse import urlencode, urlsplit

import streamlit as st

from npd_core.errors import NPDError
from npd_core.export import MODEL_FORMATS
from npd_core.export.qr_code import qr_code
from npd_core.runs.store import Run
from pages.shared import cache

TITLES = {"safetensors": "Weights", "pt2": "PyTorch graph", "onnx": "ONNX"}
FOLDED = "The polarizer is folded into the layers beside it."
WHOLE = "The defense repaired the whole network: there is no polarizer, and no layer was added."
LOCAL = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")


def downloads(run: Run) -> None:
    """The files of an ended run. Each is made when it is asked for."""
    if not run.has_network:
        st.caption("This run left no repaired network behind, so there is nothing to take home.")
        return
    st.write(
        "The repaired network as a file of its own, with a program of a few lines that uses it without this app. "
        + (FOLDED if run.has_polarizer else WHOLE)
    )
    name = f"{run.request.model}-{run.id}"
    with st.grid("auto", min_column_width=220):
        for kind, what in MODEL_FORMATS.items():
            missing = kind == "onnx" and not (find_spec("onnx") and find_spec("onnxscript"))
            st.download_button(
                f"{TITLES[kind]} (.{kind})",
                b"" if missing else lambda kind=kind: cache.runs.model_archive(run.id, kind),  # type: ignore[misc]
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
            help="One file for any browser, offline: settings, curves, pictures, attributions, environment.",
        )


def home() -> str:
    """Address of the app without a page, as the visitor's browser reaches it: "https://host/npd"; "" where unknown."""
    here = (st.context.url or "").rstrip("/")
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    if here and base:
        # Of a base path that ends like the name of a page, as "npd-lab" does, Streamlit's address lacks the end.
        return urlsplit(here)._replace(path=f"/{base}").geturl()
    page = st.session_state.get("_page")
    return here.removesuffix(f"/{page}") if page else here


def share(page: str, **query: str) -> None:
    """The link to a page in this state, to copy and as a QR code.

    Args:
        page: url path of the page.
        query: what the link carries.
    """
    address = f"{home()}/{page}?{urlencode(query)}"
    st.code(address, language=None, wrap_lines=True)
    try:
        drawn = qr_code(address)
    except NPDError as error:
        st.caption(str(error))
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
            "This address works on this machine alone. Serve the app under a name that phones can reach."
        )
