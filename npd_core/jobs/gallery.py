"""Makes the strip of pictures that is stored beside a recorded run: `python -m npd_core.jobs.gallery FOLDER ...`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from npd_core.data.load import class_names, load_dataset
from npd_core.errors import ConfigError, NPDError
from npd_core.evaluation import predict_proba
from npd_core.figures.gallery import Answer, Item, write_gallery
from npd_core.jobs.store import RunStore
from npd_core.polarizer.artifact import load_polarizer
from npd_core.zoo.weights import load_backdoored


def make_gallery(folder: Path, count: int = 4) -> None:
    """Write gallery.json and gallery.png into the folder of a run with a polarizer.

    The pictures are the first test images, of `count` different classes, that the backdoored network gets right when
    clean and gives to the attacker when triggered. What the purified network says of them plays no part in the choice.

    Args:
        folder: of an ended run.
        count: pictures, at most one per class.
    Raises:
        ConfigError: the attack works on no such picture.
        NPDError: the run, its model or its data cannot be read.
    """
    run = RunStore(folder.parent).get(folder.name)
    backdoored = load_backdoored(run.request.model)
    names = class_names(backdoored.card.dataset)
    polarized = load_polarizer(folder, backdoored.net, backdoored.card)
    data = load_dataset(backdoored.card.dataset, "test")
    images, labels = data.images[:2000], data.labels[:2000]
    triggered = backdoored.attack.apply(images.clone())
    clean_says = predict_proba(backdoored.net, images)
    triggered_says = predict_proba(backdoored.net, triggered)
    rule = backdoored.attack.rule
    works = (clean_says.argmax(1) == labels) & (triggered_says.argmax(1) == rule.target(labels)) & rule.eligible(labels)
    chosen: dict[int, int] = {}
    for index in torch.nonzero(works).flatten().tolist():
        chosen.setdefault(int(labels[index]), index)
    rows = sorted(chosen.values())[:count]
    if not rows:
        raise ConfigError(f"The trigger of {backdoored.card.id} works on none of the first {len(labels)} test images.")
    picked = torch.tensor(rows)
    purified_says = predict_proba(polarized, triggered[picked])

    def answer(probabilities: torch.Tensor) -> Answer:
        best = int(probabilities.argmax())
        return Answer(names[best], round(float(probabilities[best]), 4))

    items = [
        Item(at, names[int(labels[at])], answer(clean_says[at]), answer(triggered_says[at]), answer(purified))
        for at, purified in zip(rows, purified_says, strict=True)
    ]
    write_gallery(folder, items, images[picked].numpy(), triggered[picked].numpy())


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            make_gallery(Path(name).resolve())
    except NPDError as problem:
        sys.exit(str(problem))
