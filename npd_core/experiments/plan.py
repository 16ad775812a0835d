"""Plan Tables 1 to 7 and Figure 3 of the paper: their cells, and the model of each. Nothing is run here.

No torch until Figure 3 needs the names of its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from npd_core.config.baselines import CONFIGS
from npd_core.config.npd import VARIANTS
from npd_core.config.presets import BASELINE_DEFAULTS, PAPER_LAYERS, default_layer, defense_config, preset
from npd_core.data.load import availability
from npd_core.data.spec import DatasetSpec, get_dataset
from npd_core.errors import CheckpointError, DataMissingError, UnknownNameError, unknown_name
from npd_core.experiments.grid import main_path
from npd_core.experiments.published import ATTACKS, DEFENSES, TERMS
from npd_core.experiments.record import AXES
from npd_core.experiments.task import Training, ratio_zoo, shipped_ratio_zoo
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card, model_id

PAPER_WIDTH = 64
DEMO_WIDTH = 16
"""Used where the zoo has no model at all."""


@dataclass(frozen=True)
class Table:
    """One table of the paper. Of two tuples, the first is the whole table and the second its quick form."""

    title: str
    dataset: str
    """The paper's."""
    attacks: tuple[tuple[str, ...], tuple[str, ...]]
    defenses: tuple[str, ...]
    values: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ())
    """Of the axis besides attack and defense: terms, poison ratios, numbers of clean images."""


_EVERY = tuple(ATTACKS)
_BASELINES = ("fp", "nad", "nc", "anp", "i_bau", "ep")
_SIDE_BY_SIDE = (*_BASELINES, "npd_tu", "npd_tp", "npd")
_LOSSES = ("badnets_a2o", "blended", "lf")

TABLES: dict[str, Table] = {
    "table1": Table("Every defense against every attack", "cifar10", (_EVERY, _EVERY), _SIDE_BY_SIDE),
    "table2": Table("Every defense against every attack", "tiny_imagenet", (_EVERY, _EVERY), _SIDE_BY_SIDE),
    "table3": Table(
        "What each term of the loss does",
        "cifar10",
        (_LOSSES, _LOSSES[:2]),
        ("npd",),
        (tuple(TERMS), tuple(TERMS)),
    ),
    "table4": Table(
        "Targeted or untargeted perturbations",
        "cifar10",
        (("badnets_a2o", "blended", "lf", "ssba", "trojan", "wanet"), ("badnets_a2o", "blended", "wanet")),
        ("npd_uu", "npd_up", "npd"),
    ),
    "table5": Table(
        "Poisoning ratios",
        "cifar10",
        (("badnets_a2o", "blended", "input_aware", "wanet"), ("badnets_a2o", "blended")),
        ("npd",),
        ((0.05, 0.1, 0.2, 0.3, 0.4), (0.05, 0.1, 0.2)),
    ),
    "table6": Table(
        "Few clean images",
        "cifar10",
        (("badnets_a2o", "ssba", "lf"), ("badnets_a2o", "ssba", "lf")),
        ("i_bau", "anp", "npd"),
        ((500, 250, 50), (500, 50)),
    ),
    "table7": Table("Running time", "cifar10", (("badnets_a2o",), ("badnets_a2o",)), (*_BASELINES, "npd")),
    "figure3": Table("Where the polarizer is put", "cifar10", (_LOSSES, _LOSSES), ("npd",)),
}
"""As in the paper. Figure 3 does not name its three attacks in the text, so those of Table 3 are used; its
layers are all main-path convolutions (every second in the quick form), the default insertion layer and the
paper's."""

QUICK_IMAGES = 1000
"""Test images used by a quick table."""
QUICK: dict[str, dict[str, dict[str, Any]]] = {
    "signs": {"fp": {"epochs": 10}, "nad": {"epochs": 5, "teacher_epochs": 5}},
    "": {
        "fp": {"epochs": 10},
        "nad": {"epochs": 5, "teacher_epochs": 5},
        "nc": {"batch_size": 64, "trigger_epochs": 4, "patience": 1, "early_stop": 2, "epochs": 3},
        "anp": {"batch_size": 64, "iterations": 150, "lr": 0.02},
        "i_bau": {"rounds": 2},
    },
}
"""Baseline settings that a quick table changes so that it runs on two CPU cores, by data set (the empty name:
any other). NPD and its variants keep their presets; EP needs a single pass anyway."""
BENCHMARK: dict[str, dict[str, Any]] = {
    "fp": {"holdout": "the test images"},
    "nad": {"levels": "two"},
    "nc": {"screening_epochs": 0},
    "anp": {"select": "the ASR on test images"},
}
"""Baseline settings of the reference benchmark that differ from our defaults and, on Tiny ImageNet, from our
preset."""
OF_THE_IMAGES = ("flip", "pad", "seed")
"""Settings that a baseline takes over from the network's own training; they are not compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a table is to be run."""

    dataset: str | None = None
    """None: the paper's."""
    quick: bool = False
    attacks: tuple[str, ...] | None = None
    """None: those of the table, or of its quick form."""
    defenses: tuple[str, ...] | None = None
    """None: those of the table."""
    arch: str = "preact_resnet18"
    width: int | None = None
    """None: the width with models for most attacks; of several, the smallest for a quick table, otherwise the
    largest."""
    seed: int = 0
    device: str = "auto"


class CellRequest(NamedTuple):
    """A cell of a table before its model is found."""

    row: Mapping[str, Any]
    attack: str
    defense: str
    layer: str | None = None
    clean: float | int = 0.05
    terms: str | None = None
    """Terms of the loss that keep their weight; None: all."""
    poison_ratio: float | None = None
    """None: that of the model in the zoo."""


class Planned(NamedTuple):
    """A cell with its model."""

    request: CellRequest
    model: str
    zoo: Zoo
    """Holds the model."""
    failed: str | None
    """Why it cannot be run."""


@dataclass(frozen=True)
class Plan:
    """A table that can be run."""

    table: str
    dataset: str
    options: Options
    cells: tuple[Planned, ...]
    trainings: tuple[Training, ...]
    """Models to train first."""
    cut: tuple[str, ...]
    """Sentences on the differences from the paper's table."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defense -> settings that `quick` changes."""


class _Scope(NamedTuple):
    """What a plan covers."""

    table: str
    dataset: DatasetSpec
    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    values: tuple[Any, ...]
    all_values: tuple[Any, ...]
    width: int
    cards: Mapping[str, Card]
    """Models of this width, by attack."""


def plan_table(table: str, options: Options) -> Plan:
    """Return the cells and trainings of a table; nothing is run.

    Raises:
        UnknownNameError: no such table, data set, attack, defense or architecture.
        DataMissingError: the data set is not on this machine.
    """
    scope = _scope(table, options)
    cells: list[Planned] = []
    trainings: dict[Training, None] = {}
    for request in _cells(scope, default_layer(options.arch, scope.dataset.id)):
        planned, training = _find(request, scope, options)
        cells.append(planned)
        if training is not None:
            trainings[training] = None
    changes = QUICK.get(scope.dataset.id, QUICK[""]) if options.quick else {}
    cut = (*_left_out(scope, options), *_other_settings(scope, changes), *_other_models(scope))
    return Plan(table, scope.dataset.id, options, tuple(cells), tuple(trainings), cut, changes)


def _scope(table: str, options: Options) -> _Scope:
    """Return attacks, defenses, values, width and models of a table. Raises as `plan_table`."""
    if table not in TABLES:
        raise unknown_name("table", table, TABLES)
    whole = TABLES[table]
    dataset = get_dataset(options.dataset or whole.dataset)
    attacks = _chosen("attack", options.attacks, ATTACKS, whole.attacks[options.quick])
    free = "defense" in AXES[table] and table != "table4"
    defenses = _chosen("defense", options.defenses, DEFENSES if free else whole.defenses, whole.defenses)
    if options.arch not in PAPER_LAYERS:
        raise unknown_name("architecture", options.arch, PAPER_LAYERS)
    state = availability(dataset.id)
    if not state.available:
        raise DataMissingError(state.reason)
    cards = [card for card in Zoo().cards() if (card.dataset, card.arch) == (dataset.id, options.arch)]
    width = options.width or _width(cards, attacks, smallest=options.quick)
    here = {card.attack: card for card in cards if card.width == width}
    values = _layers(options, dataset.id, dataset.size) if table == "figure3" else whole.values
    return _Scope(table, dataset, attacks, defenses, values[options.quick], values[0], width, here)


def _left_out(scope: _Scope, options: Options) -> list[str]:
    """Say what the table lacks beside the paper's."""
    whole = TABLES[scope.table]
    notes = []
    if scope.width != PAPER_WIDTH:
        notes.append(f"The networks have width {scope.width}, the paper's have {PAPER_WIDTH}.")
    for kind, used, all_of in (
        ("Attacks", scope.attacks, whole.attacks[0]),
        ("Defenses", scope.defenses, whole.defenses),
        ("Values", scope.values, scope.all_values),
    ):
        names = [str(name) for name in all_of if name not in used]
        notes += [f"{kind} left out: {', '.join(names)}."] if names else []
    if options.quick and scope.dataset.test_images > QUICK_IMAGES:
        notes.append(f"Measured on {QUICK_IMAGES} of {scope.dataset.test_images} test images.")
    return notes


def _other_settings(scope: _Scope, changes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which settings are not those of the paper or of the reference benchmark."""
    card = next(iter(scope.cards.values()), None)
    if card is None:
        return []
    variants = [name for name in scope.defenses if name in VARIANTS]
    notes = _baselines(changes, [name for name in scope.defenses if name in CONFIGS], card)
    notes += _unlike_paper(scope.table, variants, card)
    return notes + (_unlike_each_other(variants, card) if scope.table == "table4" else [])


def _other_models(scope: _Scope) -> list[str]:
    """Say which models are not poisoned or trained as the paper's."""
    cards = [card for attack, card in scope.cards.items() if attack in scope.attacks]
    if scope.table == "table5":
        return _trained_longer(cards, scope.values)
    other = [f"{card.id} ({card.poison_ratio:.0%})" for card in cards if round(card.poison_ratio, 2) != 0.1]
    return [f"Poisoned at another ratio than the paper's 10%: {', '.join(other)}."] if other else []


def _chosen(
    kind: str, names: Sequence[str] | None, choices: Iterable[str], default: Sequence[str]
) -> tuple[str, ...]:
    for name in names or ():
        if name not in choices:
            raise unknown_name(kind, name, choices)
    return tuple(name for name in choices if name in (names or default))


def _width(cards: Sequence[Card], attacks: Sequence[str], *, smallest: bool) -> int:
    """Return the width at which most of the attacks have a model."""
    counts: dict[int, int] = {}
    for card in cards:
        counts[card.width] = counts.get(card.width, 0) + (card.attack in attacks)
    return max(counts, key=lambda width: (counts[width], -width if smallest else width), default=DEMO_WIDTH)


def _layers(options: Options, dataset: str, size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the insertion layers of Figure 3: all, and those of its quick form."""
    main = main_path(options.arch, size)
    extra = dict.fromkeys((PAPER_LAYERS[options.arch], default_layer(options.arch, dataset)))
    return (*main, *extra), (*main[::2], *extra)


VALUE_AXES = {"table3": "terms", "table5": "poison_ratio", "table6": "clean", "figure3": "layer"}
"""Axis besides attack and defense, which is also the field of CellRequest that it sets."""


def _cells(scope: _Scope, default: str) -> list[CellRequest]:
    """Return every cell of a table. Args: default: insertion layer that a request need not name."""
    axis = VALUE_AXES.get(scope.table)
    found = []
    for attack, value, defense in product(scope.attacks, scope.values if axis else (None,), scope.defenses):
        facts = {"attack": attack, "defense": defense, "targeted": defense == "npd", axis or "": value}
        row = {name: facts[name] for name in AXES[scope.table]}
        settings: dict[str, Any] = {axis: None if value == default else value} if axis else {}
        found.append(CellRequest(row, attack, defense, **settings))
    return found


def _find(request: CellRequest, scope: _Scope, options: Options) -> tuple[Planned, Training | None]:
    """Return a cell with its model, and the training that must make this model first, if any."""
    model = model_id(scope.dataset.id, request.attack, options.arch, scope.width)
    card, ratio = scope.cards.get(request.attack), request.poison_ratio
    if card is not None and (ratio is None or card.poison_ratio == ratio):
        return Planned(request, model, Zoo(), None), None
    if ratio is None:
        missing = f"There is no model {model} here: make it with `npd zoo train {model}`."
        return Planned(request, model, Zoo(), missing), None
    for zoo in (shipped_ratio_zoo(ratio), ratio_zoo(ratio)):
        if _holds(zoo, model, ratio):
            return Planned(request, model, zoo, None), None
    training = Training(model=model, poison_ratio=ratio, device=options.device)
    return Planned(request, model, ratio_zoo(ratio), None), training


def _holds(zoo: Zoo, model: str, poison_ratio: float) -> bool:
    try:
        return zoo.card(model).poison_ratio == poison_ratio
    except (CheckpointError, UnknownNameError):
        return False


def _unlike_paper(table: str, variants: Sequence[str], card: Card) -> list[str]:
    """Say in which settings NPD and its variants are not as in the paper."""
    groups: dict[str, list[str]] = {}
    for variant in variants:
        parts = _differences(
            preset(card.dataset, variant=variant).to_dict(),
            preset(card.dataset, "paper", variant=variant).to_dict(),
        )
        layer = default_layer(card.arch, card.dataset)
        if layer != PAPER_LAYERS[card.arch] and table != "figure3":
            parts.insert(0, f"at {layer} instead of {PAPER_LAYERS[card.arch]}")
        groups.setdefault(", ".join(parts), []).append(DEFENSES[variant])
    return [f"{', '.join(names)}: {parts}." for parts, names in groups.items() if parts]


def _unlike_each_other(variants: Sequence[str], card: Card) -> list[str]:
    """Say in which settings the variants differ among each other."""
    configs = {variant: preset(card.dataset, variant=variant).to_dict() for variant in variants}
    groups: dict[str, list[str]] = {}
    for variant, config in configs.items():
        parts = [
            f"{name} {value}"
            for name, value in config.items()
            if any(other[name] != value for other in configs.values())
        ]
        groups.setdefault(", ".join(parts), []).append(DEFENSES[variant])
    if len(groups) < 2:
        return []
    parts = [f"{', '.join(names)} with {settings}" for settings, names in groups.items()]
    return [f"The variants differ in more than the perturbation: {'; '.join(parts)}."]


def _trained_longer(cards: Sequence[Card], ratios: Sequence[Any]) -> list[str]:
    """Name models of the zoo that were trained longer than `npd table` trains those of other ratios."""
    more = [(card, sum(epochs for epochs, _ in card.recipe.get("again", ()))) for card in cards]
    parts = [
        f"{card.id} ({card.poison_ratio:.0%}, {epochs} epochs more)"
        for card, epochs in more
        if epochs and card.poison_ratio in ratios
    ]
    return [f"Trained longer than the models of the other ratios: {', '.join(parts)}."] if parts else []


def _baselines(changes: Mapping[str, Mapping[str, Any]], defenses: Sequence[str], card: Card) -> list[str]:
    """Say in which settings the baselines are not as in the reference benchmark."""
    notes = []
    for defense in defenses:
        theirs = CONFIGS[defense]().to_dict()
        if card.dataset == "tiny_imagenet":
            theirs |= BASELINE_DEFAULTS[card.dataset].get(defense, {})
        theirs |= BENCHMARK.get(defense, {})
        ours = defense_config(defense, card, **changes.get(defense, {})).to_dict()
        parts = _differences({k: v for k, v in ours.items() if k not in OF_THE_IMAGES}, theirs)
        notes += [f"{DEFENSES[defense]}: {', '.join(parts)}."] if parts else []
    return notes


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {value} instead of {theirs[name]}" for name, value in ours.items() if value != theirs[name]
    ]
