"""Train a model of the zoo, named by its id, and verify those that exist."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
import torchvision
from safetensors.torch import load_file

from npd_core.attacks import ATTACKS, CLEAN, DYNAMIC, MAKE, NEEDS_CLEAN_NET, Attack, get_attack, make_attack
from npd_core.attacks.poison import check_ratio, poison_training_set, shares
from npd_core.data.load import ImageSet, class_names, load_dataset
from npd_core.data.spec import DATASETS, get_dataset
from npd_core.device import resolve_device
from npd_core.errors import ConfigError, unknown_name
from npd_core.evaluation import TestSets, cross_accuracy, evaluate, test_sets
from npd_core.events import Event, Finished
from npd_core.fileio import write_tensors
from npd_core.metrics import Metrics
from npd_core.models import MODELS, Normalized, build_model
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card, model_id
from npd_core.zoo.checkpoint import damaged
from npd_core.zoo.classifier import InLoop, train_classifier
from npd_core.zoo.recipe import Recipe, default_recipe
from npd_core.zoo.weights import eight_bits, half_precision, restored

ID = re.compile(
    r"(?P<dataset>[a-z0-9_]+)-(?P<attack>[a-z0-9_]+)-(?P<arch>[a-z0-9_]+)-w(?P<width>[1-9][0-9]{0,2})"
)


LONG = 500_000
"""Images in a training above which compiling the network pays off."""
LOWER = 0.5
"""Peak learning rate of a further cycle, as a share of the first one's."""
LOSS = 0.002
"""ACC that eight bits a weight may cost; a model that loses more is stored in float16."""

PAPER = (("cifar10", "preact_resnet18"), ("gtsrb", "preact_resnet18"), ("cifar10", "vgg19_bn"))
"""Data sets and architectures of the preset `paper`, in the order in which they are trained."""
PAPER_WIDTH = 64
PAPER_EPOCHS = {"cifar10": 40, "gtsrb": 14}


class ModelName(NamedTuple):
    """The parts of a model's id."""

    dataset: str
    attack: str
    arch: str
    width: int


def parse_id(model: str) -> ModelName:
    """Split an id such as `signs-badnets_a2o-preact_resnet18-w32`. The attack `clean` stands for a clean
    model.

    Raises:
        ConfigError: not of the form `<dataset>-<attack>-<arch>-w<width>`.
        UnknownNameError: one of the parts does not exist.
    """
    match = ID.fullmatch(model)
    if match is None:
        example = model_id("signs", "badnets_a2o", "preact_resnet18", 32)
        raise ConfigError(
            f"{model!r} is not a model id: write <dataset>-<attack>-<arch>-w<width>, such as {example}."
        )
    name = ModelName(match["dataset"], match["attack"], match["arch"], int(match["width"]))
    for kind, part, table in (
        ("data set", name.dataset, DATASETS),
        ("attack", name.attack, (*ATTACKS, CLEAN)),
        ("architecture", name.arch, MODELS),
    ):
        if part not in table:
            raise unknown_name(kind, part, table)
    return name


def paper_models(width: int | None = None, attacks: Sequence[str] | None = None) -> list[ModelName]:
    """List the models of the preset `paper` in the order of their training. Raises UnknownNameError,
    ConfigError."""
    width, attacks = width or PAPER_WIDTH, attacks or tuple(ATTACKS)
    return [parse_id(model_id(data, attack, arch, width)) for data, arch in PAPER for attack in attacks]


def plan(
    model: str,
    *,
    poison_ratio: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    longer: int | None = None,
    zoo: Zoo = Zoo(),
) -> tuple[Recipe, float]:
    """Return the recipe, with its seed, and the poison ratio that `train_model` would use.

    For a model of the zoo they are those of its card unless given, and `longer` adds a cycle of that many
    epochs to the recipe. A new model has the default recipe, the ratio 0.1 and the seed 0.

    Raises:
        As `train_model`.
    """
    name = parse_id(model)
    if model in zoo.ids():
        card = zoo.card(model)
        recipe, ratio = replace(Recipe.from_dict(card.recipe), seed=card.seed), card.poison_ratio
    else:
        card = None
        recipe, ratio = default_recipe(get_dataset(name.dataset), name.attack, name.arch), 0.1
    if name.attack == CLEAN:
        poison_ratio = 0.0
    ratio = ratio if poison_ratio is None else poison_ratio
    check_ratio(ratio)
    if card is not None and card.poison_ratio != ratio:
        raise ConfigError(
            f"{card.folder} holds this model at a poison ratio of {card.poison_ratio:g}: "
            f"set NPD_ZOO_DIR to another folder for one at {ratio:g}, or remove the model first."
        )
    if longer is not None:
        if card is None:
            raise ConfigError(
                f"Only a model of the zoo can be trained longer: run `npd zoo train {model}` first."
            )
        if epochs is not None or seed is not None:
            raise ConfigError("A model that is trained longer keeps its epochs and its seed: give neither.")
        recipe = replace(recipe, again=(*recipe.again, (longer, LOWER * recipe.peak_lr)))
    epochs = recipe.epochs if epochs is None else epochs
    return replace(recipe, epochs=epochs, seed=recipe.seed if seed is None else seed), ratio


def train_model(
    model: str,
    *,
    poison_ratio: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    longer: int | None = None,
    device: str = "auto",
    zoo: Zoo = Zoo(),
) -> Iterator[Event]:
    """Train `model`, measure it and write it into the zoo with its card. Resumable after every epoch.

    A trigger that must be made comes first. If it is made against a clean model,
    `<dataset>-clean-<arch>-w<width>` is trained before it with the same epochs and seed, unless the zoo has
    one, and stays in the zoo.

    Args:
        model: id; see `parse_id`.
        poison_ratio: share of the training images that the attacker stamps and relabels; 0 for a clean model.
        poison_ratio, epochs, seed: None: see `plan`.
        longer: epochs by which to continue a model of the zoo, and its trigger if that is trained too.
        zoo: where the model goes.
    Yields:
        the events of each training from Started on; one Finished at the end, with the card as its result.
    Raises:
        UnknownNameError: a part of the id does not exist.
        ConfigError: an invalid id, ratio or number of epochs, or the zoo has the model at another ratio.
        DataMissingError: the training or the test split is not on this machine.
        CheckpointError: a damaged card, or files of an interrupted training that are damaged or of another
            one.
        StorageError: a file could not be written; the state after the last epoch stays.
    """
    name = parse_id(model)
    recipe, ratio = plan(model, poison_ratio=poison_ratio, epochs=epochs, seed=seed, longer=longer, zoo=zoo)
    done = 0 if longer is None else recipe.total - longer
    where = resolve_device(device)
    data = load_dataset(name.dataset, "train")
    load_dataset(name.dataset, "test")  # a missing test split is reported now, not after the training
    if name.attack in DYNAMIC:
        shares(recipe.batch_size, ratio, DYNAMIC[name.attack].cross_ratio)
    if longer is None:
        attack = yield from _attack_for(name, data, epochs, recipe.seed, where, zoo)
        net = fresh_network(name, recipe)
    else:
        _, net, attack = zoo.load(model)
        net.requires_grad_(True)
    in_loop = _in_loop(name, attack, ratio, where)
    poisoned = poison_training_set(data, attack, 0.0 if in_loop else ratio, recipe.seed)
    compiled = (recipe.total - done) * len(poisoned.labels) > LONG
    checkpoint = checkpoint_path(model, zoo)
    last = yield from _without_end(
        train_classifier(net, poisoned, recipe, where, checkpoint, compiled, in_loop, done)
    )
    attack = attack if in_loop is None else in_loop.trigger.attack()
    seconds = last.seconds + (zoo.card(model).seconds if longer else 0.0)
    card = _measure_and_save(name, net, attack, recipe, ratio, seconds, where, zoo)
    for path in (checkpoint, trigger_path(model, zoo)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    yield Finished(last.epoch, last.seconds, result=card.to_dict())


def _in_loop(name: ModelName, attack: Attack, ratio: float, device: torch.device) -> InLoop | None:
    """Return the poisoning inside the training loop, for the attacks that need it."""
    if name.attack not in DYNAMIC:
        return None
    trigger = DYNAMIC[name.attack](attack, get_dataset(name.dataset), device)
    return InLoop(trigger, attack.rule, ratio)


def _without_end(events: Iterator[Event]) -> Generator[Event, None, Finished]:
    """Yield all events but the Finished, which is returned."""
    last: Finished | None = None
    for event in events:
        if isinstance(event, Finished):
            last = event
        else:
            yield event
    assert last is not None
    return last


def _measure_and_save(
    name: ModelName,
    net: Normalized,
    attack: Attack,
    recipe: Recipe,
    poison_ratio: float,
    seconds: float,
    device: torch.device,
    zoo: Zoo,
) -> Card:
    """Measure the trained network on the test split and write it into the zoo."""
    spec, backdoored = get_dataset(name.dataset), name.attack != CLEAN
    sets = test_sets(name.dataset, attack)
    stored, measured = _compact(net, sets, device)
    card = Card(
        id=model_id(*name), dataset=spec.id, attack=attack.name, attack_params=dict(attack.params),
        poison_ratio=poison_ratio, target=attack.rule.describe(class_names(spec.id)), arch=name.arch,
        width=name.width, num_classes=spec.num_classes, image_size=spec.size, mean=spec.mean, std=spec.std,
        recipe=recipe.to_dict(), seed=recipe.seed, acc=measured.acc,
        asr=measured.asr if backdoored else None, ra=measured.ra if backdoored else None,
        cross_acc=cross_accuracy(net, sets.clean, attack, device), seconds=seconds,
        versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
    )  # fmt: skip
    return zoo.save(net, card, attack.assets, stored)


def _compact(
    net: Normalized, sets: TestSets, device: torch.device
) -> tuple[dict[str, torch.Tensor], Metrics]:
    """Return what to store and its metrics: eight bits a weight, unless this costs more ACC than LOSS
    compared with float16. `net` then holds what is stored."""
    stored, measured = half_precision(net), evaluate(net, sets, device)
    smaller = eight_bits(net)
    net.load_state_dict(restored(smaller))
    after = evaluate(net, sets, device)
    if after.acc >= measured.acc - LOSS:
        return smaller, after
    net.load_state_dict(restored(stored))
    return stored, measured


def _attack_for(
    name: ModelName, data: ImageSet, epochs: int | None, seed: int, device: torch.device, zoo: Zoo
) -> Generator[Event, None, Attack]:
    """Return the attack of the model to train; its trigger is made now, or was made by an interrupted
    training."""
    if name.attack == CLEAN:
        return get_attack(CLEAN, name.dataset)
    if name.attack not in MAKE:
        return (yield from make_attack(name.attack, name.dataset, data, seed=seed))
    path, params = trigger_path(model_id(*name), zoo), own_params(name)
    made = {"attack": name.attack, "seed": str(seed), "epochs": str(epochs)}
    if path.exists():
        try:
            with safetensors.safe_open(path, "pt") as file:
                same = file.metadata() == made
            if same:
                return get_attack(name.attack, name.dataset, load_file(path), **params)
        except (OSError, safetensors.SafetensorError, ConfigError) as error:
            raise damaged(path, error) from error
    net = None
    if name.attack in NEEDS_CLEAN_NET:
        clean = model_id(name.dataset, CLEAN, name.arch, name.width)
        if clean not in zoo.ids():
            yield from _without_end(train_model(clean, epochs=epochs, seed=seed, device=str(device), zoo=zoo))
        net = zoo.load(clean).net.to(device)
    attack = yield from make_attack(name.attack, name.dataset, data, net, seed=seed, device=device, **params)
    write_tensors(path, attack.assets, made)
    return attack


def own_params(name: ModelName) -> dict[str, int]:
    """Return the parameters of an attack that depend on the model. The networks that make the trigger of
    Input-aware
    are half as wide as the attacked one, as in the paper, but at most 16 channels: with 32 a model of width
    64 would take 14 MB."""
    return {"width": min(16, max(4, name.width // 2))} if name.attack == "input_aware" else {}


def fresh_network(name: ModelName, recipe: Recipe) -> Normalized:
    """Return the network before its first step; the seed decides its weights."""
    spec = get_dataset(name.dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build_model(name.arch, spec.num_classes, name.width, spec.mean, spec.std)


def checkpoint_path(model: str, zoo: Zoo) -> Path:
    """Return where a training keeps its state until it is finished; git ignores the folder."""
    return zoo.checkpoints / f"{model}.pt"


def trigger_path(model: str, zoo: Zoo) -> Path:
    """Return where the same training keeps the trigger that was made for it."""
    return checkpoint_path(model, zoo).with_suffix(".trigger.safetensors")


class Verdict(NamedTuple):
    """Result of `npd zoo verify` for one model."""

    model: str
    card: Metrics
    measured: Metrics
    ok: bool


TOLERANCE = 0.005
"""How far a metric may lie from its card: other hardware rounds differently, and the stored weights are
rounded."""


def verify_model(model: str, device: str = "auto", zoo: Zoo = Zoo()) -> Verdict:
    """Check the model's files against the hashes in its card, and measure it again.

    Raises:
        CheckpointError: a file is missing or was changed.
        DataMissingError: the test split is not on this machine.
    """
    backdoored = zoo.load(model)
    card = backdoored.card
    where, sets = resolve_device(device), test_sets(card.dataset, backdoored.attack)
    measured = evaluate(backdoored.net, sets, where)
    expected = Metrics(card.acc, card.asr or 0.0, card.ra or 0.0)
    pairs = list(zip(expected, measured, strict=True))
    cross_acc = cross_accuracy(backdoored.net, sets.clean, backdoored.attack, where)
    if cross_acc is not None and card.cross_acc is not None:
        pairs.append((card.cross_acc, cross_acc))
    return Verdict(model, expected, measured, all(abs(a - b) <= TOLERANCE for a, b in pairs))
