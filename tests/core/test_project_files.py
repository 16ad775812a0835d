"""The three lists of packages say the same, the pins are complete, and nothing depends on where packages come
from."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def package(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower()


def test_hosting_services_install_what_the_project_asks_for():
    assert [line for line in lines("requirements.txt") if not line.startswith("-c ")] == PROJECT[
        "dependencies"
    ]


def test_every_package_is_pinned():
    pins = lines("constraints.txt")
    assert all(re.match(r"[a-z0-9._-]+==[^\s=]+( ; .+)?$", pin) for pin in pins)
    asked = PROJECT["dependencies"] + [
        r for extra in PROJECT["optional-dependencies"].values() for r in extra
    ]
    assert {package(r) for r in asked} <= {package(pin) for pin in pins}


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt", "pyproject.toml", "Makefile"])
def test_no_index_address(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"(?m)^\s*--?(extra-)?(index-url|find-links|i\b|f\b)|(https?|file)://", text)


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--headless", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_port_in_use_is_said_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = demo("--port", str(port))
    assert done.returncode == 2
    assert re.fullmatch(rf"Port {port} is in use: try `make demo PORT=\d+`\.\n", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1", "85.01"])
def test_a_port_that_is_none(port):
    done = demo(f"--port={port}")
    assert done.returncode == 2
    assert done.stderr.startswith("PORT must be a whole number from 1 to 65535, got")
    assert done.stderr.count("\n") == 1
