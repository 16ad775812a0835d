"""The short programs beside exported files: each uses its file without this project. No torch here.

A program prints the class of every image it is given, `python use.py IMAGE ...`, and defines `logits(x)`,
(N, 3, H, W) in [0, 1] -> (N, K). It reads `about.json` (classes, image size) beside it.
"""

from __future__ import annotations

from npd_core.errors import ConfigError
from npd_core.templates import render

WEIGHTS_READABLE = ("preact_resnet18", "vgg19_bn", "torchvision:")
"""Architectures, by the start of their name, that a program builds for weights without a graph."""


def use_model(kind: str, arch: str) -> str:
    """Return the program for a model file.

    Args:
        kind: `safetensors`, `pt2` or `onnx`.
        arch: of the network; a torchvision one is `torchvision:NAME`.
    Raises:
        ConfigError: the file holds weights alone, and no program builds this architecture.
    """
    if kind == "safetensors" and not arch.startswith(WEIGHTS_READABLE):
        raise ConfigError(f"Weights of {arch} alone cannot be used without its code: choose pt2 or onnx.")
    return render("use_model.py.jinja", kind=kind, arch=arch)


def use_polarizer() -> str:
    """Return the program that inserts a polarizer into its network."""
    return render("use_polarizer.py.jinja")
