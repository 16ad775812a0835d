"""Make a model of the zoo from its id alone, and check the ones that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from npd_core import paths
from npd_core.attacks import ATTACKS, get_attack
from npd_core.attacks.poison import poison_training_set
from npd_core.data.load import class_names, load_dataset
from npd_core.data.spec import DATASETS, get_dataset
from npd_core.device import resolve_device
from npd_core.errors import ConfigError, unknown_name
from npd_core.evaluation import Metrics, evaluate, test_sets
from npd_core.events import Event, Finished
from npd_core.models import MODELS, Normalized, build_model
from npd_core.zoo.card import Card, get_card, model_id
from npd_core.zoo.recipe import Recipe, default_recipe, train_classifier
from npd_core.zoo.weights import load_backdoored, save_backdoored

ID = re.compile(r"(?P<dataset>[a-z0-9_]+)-(?P<attack>[a-z0-9_]+)-(?P<arch>[a-z0-9_]+)-w(?P<width>[1-9][0-9]{0,2})")


LONG = 500_000
"""Images seen from which on compiling the network pays off."""


class ModelName(NamedTuple):
    """The parts of a model's id."""

    dataset: str
    attack: str
    arch: str
    width: int


def parse_id(model: str) -> ModelName:
    """`signs-badnets_a2o-preact_resnet18-w32` in its parts.

    Raises:
        ConfigError: not of the form `<dataset>-<attack>-<arch>-w<width>`.
        UnknownNameError: one of the parts does not exist.
    """
    match = ID.fullmatch(model)
    if match is None:
        example = model_id("signs", "badnets_a2o", "preact_resnet18", 32)
        raise ConfigError(f"{model!r} is not a model id: write <dataset>-<attack>-<arch>-w<width>, such as {example}.")
    name = ModelName(match["dataset"], match["attack"], match["arch"], int(match["width"]))
    for kind, part, table in (
        ("data set", name.dataset, DATASETS),
        ("attack", name.attack, ATTACKS),
        ("architecture", name.arch, MODELS),
    ):
        if part not in table:
            raise unknown_name(kind, part, table)
    return name


def train_model(
    model: str, *, poison_ratio: float = 0.1, epochs: int | None = None, seed: int = 0, device: str = "auto"
) -> Iterator[Event]:
    """Train `model`, measure it on the test split and write it into the zoo with its card. Resumable after every epoch.

    Args:
        model: id; see `parse_id`.
        poison_ratio: share of the training images that the attacker stamps and relabels.
        epochs: None: those of the recipe.
    Yields:
        the events of the training; the last is Finished, with the card as its result.
    Raises:
        UnknownNameError, ConfigError, DataMissingError, CheckpointError, StorageError.
    """
    name = parse_id(model)
    spec = get_dataset(name.dataset)
    changes: dict[str, Any] = {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    recipe = default_recipe(spec, name.attack, **changes)
    where = resolve_device(device)
    attack = get_attack(name.attack, name.dataset)
    data = load_dataset(name.dataset, "train")
    sets = test_sets(name.dataset, attack)
    poisoned = poison_training_set(data, attack, poison_ratio, seed)
    net = fresh_network(name, recipe)
    last: Finished | None = None
    long = recipe.epochs * len(poisoned.labels) > LONG
    for event in train_classifier(net, poisoned, recipe, where, checkpoint_path(model), compiled=long):
        if isinstance(event, Finished):
            last = event
        else:
            yield event
    assert last is not None
    measured = evaluate(net, sets, where)
    target = int(attack.params["target"])
    card = save_backdoored(
        net,
        Card(
            id=model, dataset=spec.id, attack=attack.name, attack_params=dict(attack.params), poison_ratio=poison_ratio,
            target=f"class {target} ({class_names(spec.id)[target]})", arch=name.arch, width=name.width,
            num_classes=spec.num_classes, image_size=spec.size, mean=spec.mean, std=spec.std, recipe=recipe.to_dict(),
            seed=seed, acc=measured.acc, asr=measured.asr, ra=measured.ra, seconds=last.seconds,
            versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
        ),
    )  # fmt: skip
    yield Finished(last.epoch, last.seconds, result=card.to_dict())


def fresh_network(name: ModelName, recipe: Recipe) -> Normalized:
    """The network before its first step, the same for the same seed."""
    spec = get_dataset(name.dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build_model(name.arch, spec.num_classes, name.width, spec.mean, spec.std)


def checkpoint_path(model: str) -> Path:
    """Where a training that is under way keeps its state; git ignores the folder."""
    return paths.ROOT / "checkpoints" / f"{model}.pt"


class Verdict(NamedTuple):
    """What `npd zoo verify` found for one model."""

    model: str
    card: Metrics
    measured: Metrics
    ok: bool


TOLERANCE = 0.005
"""How far a metric may lie from its card: other hardware rounds differently, and the stored weights are float16."""


def verify_model(model: str, device: str = "auto") -> Verdict:
    """Hash the model's files against its card and measure it anew.

    Raises:
        CheckpointError: a file is missing or was changed.
        DataMissingError: the test split is not here.
    """
    card = get_card(model)
    backdoored = load_backdoored(model)
    measured = evaluate(backdoored.net, test_sets(card.dataset, backdoored.attack), resolve_device(device))
    said = Metrics(card.acc, card.asr, card.ra)
    ok = all(abs(a - b) <= TOLERANCE for a, b in zip(said, measured, strict=True))
    return Verdict(model, said, measured, ok)
