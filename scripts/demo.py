"""Open the app: `make demo`. Says in one sentence, before anything is loaded, when the port cannot be had."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """The first port from 8501 up that nobody listens on; 8501 when a hundred of them are taken."""
    return next((port for port in range(8501, 8601) if not problem(port)), 8501)


def problem(port: int) -> str:
    """What keeps a server from listening on `port`; empty when nothing does."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server does: a port in TIME_WAIT is free
        try:
            probe.bind(("", port))
        except PermissionError:
            return "is reserved for the administrator"
        except OSError:
            return "is in use"
    return ""


def refusal(port_text: str) -> str:
    """Why the app cannot be served on this port, with the remedy, in one sentence; empty when it can."""
    if not port_text.isdecimal() or not 1 <= int(port_text) <= 65535:
        return (
            f"PORT must be a whole number from 1 to 65535, got {port_text!r}: try `make demo "
            f"PORT={free_port()}`."
        )
    if why := problem(int(port_text)):
        return f"Port {port_text} {why}: try `make demo PORT={free_port()}`."
    return ""


def main() -> int:
    """Replace this process with the Streamlit server; 2 when it cannot start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="8501")
    parser.add_argument("--headless", default="0", help="1: do not open a browser")
    args = parser.parse_args()
    if message := refusal(args.port):
        print(message, file=sys.stderr)
        return 2
    headless = args.headless.strip().lower() not in ("", "0", "no", "false")
    options = {
        "server.port": args.port,
        "server.headless": str(headless).lower(),
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        # otherwise a headless server asks the internet for its own address
        "browser.serverAddress": "localhost",
        "browser.gatherUsageStats": "false",
        "logger.hideWelcomeMessage": "true",  # with it goes an advertisement in the page
    }
    print(f"The app is at http://localhost:{args.port}; Ctrl-C ends it.", flush=True)
    os.chdir(ROOT)
    command = [sys.executable, "-m", "streamlit", "run", "app.py"]
    os.execv(sys.executable, command + [f"--{name}={value}" for name, value in options.items()])


if __name__ == "__main__":
    sys.exit(main())
