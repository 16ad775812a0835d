"""A link as a QR code."""

from __future__ import annotations

from npd_core.errors import ConfigError


def qr_code(address: str, dark: str = "#141A2E", light: str = "#FFFFFF") -> str:
    """Return a link as a QR code: SVG text, drawn locally, without any service.

    Args:
        address: the link; its characters appear only in the pattern.
        dark, light: colors of the modules and of the background.
    Raises:
        ConfigError: the link is too long for a code that a phone can read.
    """
    import segno

    if len(address) > 1000:
        raise ConfigError("The link is too long for a QR code: copy it instead.")
    code = segno.make(address, error="m", micro=False)
    return code.svg_inline(scale=4, border=3, dark=dark, light=light)
