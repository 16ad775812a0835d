"""A Plotly chart that is updated in place, so that live curves do not flicker and keep their zoom.

The browser loads the plotly.min.js that the plotly package ships, from this server: no outside request.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import plotly
import plotly.graph_objects as go
import streamlit as st

from npd_core import paths
from npd_core.errors import StorageError
from pages.shared.text import show_error

HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "npd_chart",
    html='<figure class="npd-chart"><div class="npd-title"></div><div class="npd-plot"></div>\n'
    '<figcaption class="npd-wait">Drawing …</figcaption></figure>',
    css=(HERE / "chart.css").read_text(encoding="utf-8"),
    js=(HERE / "chart.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def chart(figure: go.Figure | str, *, key: str, alt: str, title: str = "") -> None:
    """Draw `figure`, or change the chart of the same `key` into it.

    Args:
        figure: a figure, or its `to_json()` made once for several viewers.
        alt: the chart in one sentence, for screen readers.
        title: text above it.
    """
    try:
        url = script()
    except StorageError as error:
        show_error(error)
        return
    _mount(
        key=key,
        data={
            "figure": figure if isinstance(figure, str) else figure.to_json(),
            "alt": alt,
            "title": title,
            "script": url,
        },
        height="content",
    )


@cache
def script() -> str:
    """Return the URL of plotly.min.js, relative to the app; copy the file to `static/` when it is missing.

    Raises:
        StorageError: it cannot be copied.
    """
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = paths.ROOT / "static" / f"plotly-{plotly.__version__}.min.js"
    try:
        if not target.is_file() or target.stat().st_size != source.stat().st_size:
            target.parent.mkdir(exist_ok=True)
            part = target.with_suffix(".part")
            shutil.copyfile(source, part)
            part.replace(target)
    except OSError as error:
        raise StorageError(
            f"The chart library could not be copied to {target.parent}: {error.strerror}."
        ) from error
    return f"app/static/{target.name}"
