"""Text from outside (URL, files, class names, models) shown as text, not as Markdown."""

from __future__ import annotations

import re

import streamlit as st

JOINER = "\u2060"  # invisible; keeps Streamlit from making links, icons and emoji of the text around it
SPECIAL = re.compile(r"[\\`*{}\[\]<>|~$^&!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[-+=#]|(?<=^\d)[.)]")
AUTOMATIC = re.compile(r"(?<=:)(?=\S)|(?<=@)|(?i:(?<=www))(?=\.)")
CODE_SPAN = re.compile(r"(`[^`]+`)")


def plain(text: object, longest: int | None = None) -> str:
    """Escape `text` for Streamlit's Markdown, so that it is shown letter by letter, in one line.

    Args:
        longest: cut the text to this many characters; None: never.
    """
    words = " ".join(str(text).split())
    if longest is not None and len(words) > longest:
        words = words[:longest] + "…"
    return AUTOMATIC.sub(JOINER, SPECIAL.sub(lambda found: "\\" + found[0], words))


def message(error: object) -> str:
    """Escape an error message; names in backticks stay code."""
    parts = CODE_SPAN.split(" ".join(str(error).split()))
    return "".join(part if at % 2 else _escape_part(part) for at, part in enumerate(parts))


def show_error(error: object) -> None:
    """Show an error of the core as it is worded there."""
    st.error(message(error), icon=":material/error:")


def _escape_part(part: str) -> str:
    """`plain`, with the spaces around the part kept."""
    return (
        part[: len(part) - len(part.lstrip())] + plain(part) + part[len(part.rstrip()) :]
        if part.strip()
        else part
    )
