"""The pages in docs/ are true: numbers from the records, links that lead somewhere, options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.results import PAGE, page_with_tables
from npd_core.cli.main import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_numbers_of_the_practice_page_are_those_of_the_recorded_files() -> None:
    """Otherwise run `python -m benchmarks.results --write`."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- results:") == 2
    assert page_with_tables(page) == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "lab-notes.md"], ids=lambda page: page.name)
def test_options_of_npd_in_the_pages_exist(page: Path) -> None:
    names = {module.__name__.rsplit(".", 1)[-1].strip("_") for module in COMMANDS}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    parsers = {}
    for action in build_parser()._subparsers._group_actions:  # type: ignore[union-attr]
        parsers |= action.choices or {}  # type: ignore[operator]
    for line in re.findall(r"(?:^|`|\b)npd ([a-z]+)([^`\n#]*)", text):
        command, rest = line
        assert command in names, f"npd {command}"
        parser = parsers[command]
        words = rest.split()
        if parser._subparsers and words and words[0] in parser._subparsers._group_actions[0].choices:
            parser = parser._subparsers._group_actions[0].choices[words[0]]
        known = set(parser._option_string_actions)
        for option in re.findall(r"(?<!\S)--[a-z0-9-]+", rest):
            assert option in known, f"npd {command} {option}"


def test_the_architecture_page_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {path.name for path in (ROOT / "npd_core").iterdir() if not path.name.startswith(("_", "."))}
    assert {name for name in names if f"{name}/`" not in text and f"{name}`" not in text} == set()
