"""Example test images with the predictions of both networks, for the report and for a recorded run.

`python -m npd_core.exports.example_images FOLDER ...` writes gallery.json and gallery.png into runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from npd_core.data.load import class_names, load_dataset
from npd_core.errors import ConfigError, NPDError
from npd_core.evaluation import predict_proba
from npd_core.exports.model_archive import read_repaired
from npd_core.figures.gallery import Item, Prediction, write_gallery
from npd_core.zoo.weights import Backdoored


class Examples(NamedTuple):
    """Test images with the predictions of the two networks."""

    items: list[Item]
    clean: NDArray[np.uint8]
    """(N, 3, H, W), as is `triggered`."""
    triggered: NDArray[np.uint8]


def make_gallery(folder: Path, count: int = 4) -> None:
    """Write gallery.json and gallery.png into the folder of a run, see `choose_examples`.

    Raises:
        ConfigError: the attack works on no such image.
        NPDError: the run, its model or its data cannot be read.
    """
    found = read_repaired(folder)
    write_gallery(folder, *choose_examples(found.backdoored, found.net, count))


def choose_examples(backdoored: Backdoored, defended: nn.Module, count: int = 4) -> Examples:
    """Return the first test images, of different classes, on which the attack works.

    The backdoored network predicts the true class of the clean image and the target class of the triggered
    one. The predictions of the defended network play no part in the choice.

    Args:
        count: images, at most one per class.
    Raises:
        ConfigError: the attack works on no such image.
        DataMissingError, StorageError: the test images cannot be read.
    """
    names = class_names(backdoored.card.dataset)
    data = load_dataset(backdoored.card.dataset, "test")
    images, labels = data.images[:2000], data.labels[:2000]
    triggered = backdoored.attack.apply(images.clone())
    on_clean = predict_proba(backdoored.net, images)
    on_triggered = predict_proba(backdoored.net, triggered)
    rule = backdoored.attack.rule
    works = (
        (on_clean.argmax(1) == labels)
        & (on_triggered.argmax(1) == rule.target(labels))
        & rule.eligible(labels)
    )
    rows = first_of_each_class(labels, works, count)
    if not rows:
        raise ConfigError(
            f"The trigger of {backdoored.card.id} works on none of the first {len(labels)} test images."
        )
    picked = torch.tensor(rows)
    on_purified = predict_proba(defended, triggered[picked])
    items = [
        Item(
            at,
            names[int(labels[at])],
            top_class(names, on_clean[at]),
            top_class(names, on_triggered[at]),
            top_class(names, purified),
        )
        for at, purified in zip(rows, on_purified, strict=True)
    ]
    return Examples(items, images[picked].numpy(), triggered[picked].numpy())


def first_of_each_class(labels: Tensor, usable: Tensor, count: int) -> list[int]:
    """Return the position of the first usable image of each class, at most `count`. `usable` is (N,) bool."""
    chosen: dict[int, int] = {}
    for index in torch.nonzero(usable).flatten().tolist():
        chosen.setdefault(int(labels[index]), index)
    return sorted(chosen.values())[:count]


def top_class(names: Sequence[str], probabilities: Tensor) -> Prediction:
    """Return the most probable class of (K,) probabilities."""
    best = int(probabilities.argmax())
    return Prediction(names[best], round(float(probabilities[best]), 4))


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            make_gallery(Path(name).resolve())
    except NPDError as error:
        sys.exit(str(error))
