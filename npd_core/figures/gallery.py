"""Test images of a recorded run with their predictions: clean, triggered, and with the polarizer. No torch.

    <run>/gallery.png    two rows of N images of `size` pixels: clean above, triggered below
    <run>/gallery.json   {"size": 32, "items": [{"index": 17, "truth": "stop",
                            "clean": {"label": "stop", "probability": 0.99}, "triggered": {…}, "purified":
                            {…}}, …]}

`clean` and `triggered` are predictions of the backdoored network; `purified` is the prediction for the
triggered image with the polarizer, which acts on features and leaves the pixels unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from npd_core.errors import ConfigError
from npd_core.figures.predictions import data_url
from npd_core.fileio import staged

JSON, PNG = "gallery.json", "gallery.png"


@dataclass(frozen=True)
class Prediction:
    """The most probable class and its probability in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True)
class Item:
    """One test image. Its two data URLs are filled in by `read_gallery`."""

    index: int
    truth: str
    clean: Prediction
    triggered: Prediction
    purified: Prediction
    clean_url: str = ""
    triggered_url: str = ""


def read_gallery(folder: Path) -> list[Item]:
    """Return the gallery of a run; [] where there is none or it is unreadable."""
    try:
        record = json.loads((folder / JSON).read_text(encoding="utf-8"))
        size = int(record["size"])
        with Image.open(folder / PNG) as opened:
            sheet = opened.convert("RGB")
        items = []
        for number, row in enumerate(record["items"]):
            predictions = {
                name: Prediction(str(row[name]["label"]), float(row[name]["probability"]))
                for name in ("clean", "triggered", "purified")
            }
            tiles = [
                sheet.crop((number * size, line * size, (number + 1) * size, (line + 1) * size))
                for line in (0, 1)
            ]
            items.append(
                Item(
                    int(row["index"]),
                    str(row["truth"]),
                    **predictions,
                    clean_url=data_url(np.asarray(tiles[0]).transpose(2, 0, 1)),
                    triggered_url=data_url(np.asarray(tiles[1]).transpose(2, 0, 1)),
                )
            )
        return items
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_gallery(
    folder: Path,
    items: Sequence[Item],
    clean: NDArray[np.uint8],
    triggered: NDArray[np.uint8],
) -> None:
    """Write both files into the folder of a run.

    Args:
        items: one per image; their URLs are ignored.
        clean: (N, 3, S, S) uint8, as is `triggered`.
    Raises:
        ConfigError: the numbers of items and images differ, or there are none.
        StorageError: the files cannot be written.
    """
    if not len(items) == len(clean) == len(triggered) or not len(items):
        raise ConfigError(
            f"A gallery needs as many items as images, got {len(items)}, {len(clean)} and {len(triggered)}."
        )
    size = int(clean.shape[-1])
    rows = [np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1) for images in (clean, triggered)]
    record: dict[str, Any] = {"size": size, "items": []}
    for item in items:
        values = asdict(item)
        record["items"].append(
            {name: values[name] for name in ("index", "truth", "clean", "triggered", "purified")}
        )
    with staged(folder / PNG, folder / JSON) as (image, description):
        Image.fromarray(np.concatenate(rows, axis=0)).save(image, format="png", optimize=True)
        description.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
