"""Makes the strip of pictures that is stored beside a recorded run: `python -m npd_core.export.gallery FOLDER ...`."""

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
from npd_core.export.formats import read_repaired
from npd_core.figures.gallery import Answer, Item, write_gallery
from npd_core.zoo.weights import Backdoored


class Pictures(NamedTuple):
    """Test images with what the two networks say of them."""

    items: list[Item]
    clean: NDArray[np.uint8]
    """(N, 3, H, W), as is `triggered`."""
    triggered: NDArray[np.uint8]


def make_gallery(folder: Path, count: int = 4) -> None:
    """Write gallery.json and gallery.png into the folder of a run, see `choose_pictures`.

    Raises:
        ConfigError: the attack works on no such picture.
        NPDError: the run, its model or its data cannot be read.
    """
    found = read_repaired(folder)
    chosen = choose_pictures(found.backdoored, found.net, count)
    write_gallery(folder, *chosen)


def choose_pictures(backdoored: Backdoored, defended: nn.Module, count: int = 4) -> Pictures:
    """The first test images, of `count` different classes, that the backdoored network gets right when clean and gives
    to the attacker when triggered. What the defended network says of them plays no part in the choice.

    Args:
        count: pictures, at most one per class.
    Raises:
        ConfigError: the attack works on no such picture.
        DataMissingError, StorageError: the test images cannot be read.
    """
    names = class_names(backdoored.card.dataset)
    data = load_dataset(backdoored.card.dataset, "test")
    images, labels = data.images[:2000], data.labels[:2000]
    triggered = backdoored.attack.apply(images.clone())
    clean_says = predict_proba(backdoored.net, images)
    triggered_says = predict_proba(backdoored.net, triggered)
    rule = backdoored.attack.rule
    works = (
        (clean_says.argmax(1) == labels)
        & (triggered_says.argmax(1) == rule.target(labels))
        & rule.eligible(labels)
    )
    rows = first_of_each_class(labels, works, count)
    if not rows:
        raise ConfigError(
            f"The trigger of {backdoored.card.id} works on none of the first {len(labels)} test images."
        )
    picked = torch.tensor(rows)
    purified_says = predict_proba(defended, triggered[picked])
    items = [
        Item(
            at,
            names[int(labels[at])],
            answer(names, clean_says[at]),
            answer(names, triggered_says[at]),
            answer(names, purified),
        )
        for at, purified in zip(rows, purified_says, strict=True)
    ]
    return Pictures(items, images[picked].numpy(), triggered[picked].numpy())


def first_of_each_class(labels: Tensor, wanted: Tensor, count: int) -> list[int]:
    """Positions of the first image of each class where `wanted`, (N,) bool, is true; the first `count` of them."""
    chosen: dict[int, int] = {}
    for index in torch.nonzero(wanted).flatten().tolist():
        chosen.setdefault(int(labels[index]), index)
    return sorted(chosen.values())[:count]


def answer(names: Sequence[str], probabilities: Tensor) -> Answer:
    """The most probable class of (K,) probabilities."""
    best = int(probabilities.argmax())
    return Answer(names[best], round(float(probabilities[best]), 4))


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            make_gallery(Path(name).resolve())
    except NPDError as problem:
        sys.exit(str(problem))
