"""Data flows one way: a module imports its own stage and earlier ones, none imports itself in a circle, no UI
below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = ROOT / "npd_core"
FILES = sorted(path.relative_to(ROOT) for path in CORE.rglob("*.py"))

WITHOUT_TORCH = [
    "npd_core",
    "npd_core.errors",
    "npd_core.paths",
    "npd_core.events",
    "npd_core.metrics",
    "npd_core.data.spec",
    "npd_core.data.load",
    "npd_core.data.images",
    "npd_core.attack_info",
    "pages.content.glossary",
    "pages.content.lessons",
    "npd_core.zoo",
    "npd_core.zoo.card",
    "npd_core.config.npd",
    "npd_core.polarizer.snapshots",
    "npd_core.defenses",
    "npd_core.config.baselines",
    "npd_core.config.request",
    "npd_core.figures",
    "npd_core.runs.store",
    "npd_core.runs.queue",
    "npd_core.export.run_archive",
    "npd_core.uploads.images",
    "npd_core.experiments.record",
    "npd_core.experiments.grid",
    "npd_core.experiments.sweep",
    "npd_core.experiments.plan",
    "npd_core.cli",
]


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path: Path, *, lazy: bool = True) -> set[str]:
    """Every module that a file imports, by its full name; with `lazy`, those inside functions too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if lazy else top_level(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: say the full name instead of a relative import"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & set(MODULES)) or {node.module}
    return found


def top_level(tree: ast.AST):
    """The nodes that run when a module is imported: not inside functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from top_level(node)


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: {m for m in imported(path, lazy=False) if m in MODULES} - {name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "captum", "streamlit"):
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Refuse())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
