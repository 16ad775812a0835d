"""Tables 1 to 7 and Figure 3 of the paper: which cells they have, and which models of the zoo they are for.
Nothing is run here; no torch until Figure 3 asks for the names of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from npd_core.config.baselines import CONFIGS
from npd_core.config.npd import VARIANTS
from npd_core.config.presets import BASELINE_DEFAULTS, PAPER_LAYERS, default_layer, defense_config, preset
from npd_core.data.load import availability
from npd_core.data.spec import get_dataset
from npd_core.errors import CheckpointError, DataMissingError, UnknownNameError, unknown_name
from npd_core.experiments.grid import main_path
from npd_core.experiments.published import ATTACKS, DEFENSES, TERMS
from npd_core.experiments.record import AXES
from npd_core.experiments.task import Training, ratio_zoo, shipped_ratio_zoo
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card, model_id

PAPER_WIDTH = 64
DEMO_WIDTH = 16
"""Of the model that is asked for where the zoo has none at all."""


@dataclass(frozen=True)
class Table:
    """What one table of the paper has. The first of two tuples is the whole table, the second what `quick`
    leaves."""

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
"""As in the paper, but for Figure 3, whose three attacks can be read off its picture alone: ours are those of
Table 3. Its points: every main-path convolution, quick every second, and the default point and the
paper's."""

QUICK_IMAGES = 1000
"""Test images that a quick table is measured on."""
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
"""What a quick table changes in the settings of a baseline, by data set (the empty name: any other), so that
it can be had on two CPU cores. NPD and its variants keep their presets, and EP is a single pass."""
BENCHMARK: dict[str, dict[str, Any]] = {
    "fp": {"holdout": "the test images"},
    "nad": {"levels": "two"},
    "nc": {"screening_epochs": 0},
    "anp": {"select": "the ASR on test images"},
}
"""Settings of the baselines in the reference benchmark where they are neither our defaults nor, on Tiny
ImageNet, those of our preset."""
OF_THE_IMAGES = ("flip", "pad", "seed")
"""Settings of a baseline that are no choice of its own: how the network's own training treated the images."""


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
    """None: the one at which most of the models are there, of equals the smallest when quick, the largest
    otherwise."""
    seed: int = 0
    device: str = "auto"


class Wanted(NamedTuple):
    """A cell before its model is looked for."""

    row: Mapping[str, Any]
    attack: str
    defense: str
    layer: str | None = None
    clean: float | int = 0.05
    terms: str | None = None
    """Terms of the loss that keep their weight; None: all."""
    poison_ratio: float | None = None
    """None: as the model of the zoo has it."""


class Planned(NamedTuple):
    """A cell with the model that it is for."""

    wanted: Wanted
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
    """Models that have to be trained before."""
    cut: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defense -> settings that `quick` changes."""


def plan_table(table: str, options: Options) -> Plan:
    """What has to be done for a table; nothing is run.

    Raises:
        UnknownNameError: no such table, data set, attack or defense of it, or architecture.
        DataMissingError: the data set is not here.
    """
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
    layers = _layers(options, dataset.id, dataset.size) if table == "figure3" else ((), ())
    values = layers if table == "figure3" else whole.values
    cells: list[Planned] = []
    trainings: dict[Training, None] = {}
    for wanted in _cells(
        table, attacks, defenses, values[options.quick], default_layer(options.arch, dataset.id)
    ):
        planned, training = _find(wanted, here.get(wanted.attack), dataset.id, options, width)
        cells.append(planned)
        if training is not None:
            trainings[training] = None

    changes = QUICK.get(dataset.id, QUICK[""]) if options.quick else {}
    cut = (
        [f"The networks have width {width}, the paper's have {PAPER_WIDTH}."] if width != PAPER_WIDTH else []
    )
    for kind, used, all_of in (
        ("Attacks", attacks, whole.attacks[0]),
        ("Defenses", defenses, whole.defenses),
        ("Values", values[options.quick], values[0]),
    ):
        left_out = [str(name) for name in all_of if name not in used]
        cut += [f"{kind} left out: {', '.join(left_out)}."] if left_out else []
    if options.quick and dataset.test_images > QUICK_IMAGES:
        cut.append(f"Measured on {QUICK_IMAGES} of {dataset.test_images} test images.")
    if here:
        card = next(iter(here.values()))
        variants = [name for name in defenses if name in VARIANTS]
        cut += _baselines(changes, [name for name in defenses if name in CONFIGS], card)
        cut += _unlike(table, variants, card)
        cut += _apart(variants, card) if table == "table4" else []
    if table == "table5":
        cut += _longer([card for name, card in here.items() if name in attacks], values[options.quick])
    else:
        other = [f"{card.id} ({card.poison_ratio:.0%})" for name, card in here.items() if name in attacks]
        other = [said for said in other if not said.endswith("(10%)")]
        cut += [f"Poisoned at another ratio than the paper's 10%: {', '.join(other)}."] if other else []
    return Plan(table, dataset.id, options, tuple(cells), tuple(trainings), tuple(cut), changes)


def _chosen(
    kind: str, asked: Sequence[str] | None, choices: Iterable[str], default: Sequence[str]
) -> tuple[str, ...]:
    for name in asked or ():
        if name not in choices:
            raise unknown_name(kind, name, choices)
    return tuple(name for name in choices if name in (asked or default))


def _width(cards: Sequence[Card], attacks: Sequence[str], *, smallest: bool) -> int:
    """The width at which most of the attacks have a model: one for the whole table."""
    counts: dict[int, int] = {}
    for card in cards:
        counts[card.width] = counts.get(card.width, 0) + (card.attack in attacks)
    return max(counts, key=lambda width: (counts[width], -width if smallest else width), default=DEMO_WIDTH)


def _layers(options: Options, dataset: str, size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Points of Figure 3: all, and what `quick` leaves."""
    main = main_path(options.arch, size)
    extra = dict.fromkeys((PAPER_LAYERS[options.arch], default_layer(options.arch, dataset)))
    return (*main, *extra), (*main[::2], *extra)


def _cells(
    table: str, attacks: Sequence[str], defenses: Sequence[str], values: Sequence[Any], default: str
) -> list[Wanted]:
    """Every cell of a table. Args: default: the insertion point that a request need not name."""
    pairs = [(attack, defense) for attack in attacks for defense in defenses]
    match table:
        case "table1" | "table2":
            return [Wanted({"attack": a, "defense": d}, a, d) for a, d in pairs]
        case "table3":
            return [
                Wanted({"attack": a, "terms": terms}, a, d, terms=terms) for a, d in pairs for terms in values
            ]
        case "table4":
            return [Wanted({"attack": a, "targeted": d == "npd", "defense": d}, a, d) for a, d in pairs]
        case "table5":
            return [
                Wanted({"attack": a, "poison_ratio": ratio, "defense": d}, a, d, poison_ratio=ratio)
                for a in attacks
                for ratio in values
                for d in defenses
            ]
        case "table6":
            return [
                Wanted({"attack": a, "clean": count, "defense": d}, a, d, clean=count)
                for a in attacks
                for count in values
                for d in defenses
            ]
        case "table7":
            return [Wanted({"defense": d}, a, d) for a, d in pairs]
        case _:
            return [
                Wanted({"attack": a, "layer": layer}, a, d, layer=None if layer == default else layer)
                for a, d in pairs
                for layer in values
            ]


def _find(
    wanted: Wanted, card: Card | None, dataset: str, options: Options, width: int
) -> tuple[Planned, Training | None]:
    """The model of a cell, and the training that makes it where it is one of another poison ratio."""
    model = model_id(dataset, wanted.attack, options.arch, width)
    ratio = wanted.poison_ratio
    if card is not None and (ratio is None or card.poison_ratio == ratio):
        return Planned(wanted, model, Zoo(), None), None
    if ratio is None:
        missing = f"There is no model {model} here: make it with `npd zoo train {model}`."
        return Planned(wanted, model, Zoo(), missing), None
    for zoo in (shipped_ratio_zoo(ratio), ratio_zoo(ratio)):
        if _holds(zoo, model, ratio):
            return Planned(wanted, model, zoo, None), None
    training = Training(model=model, poison_ratio=ratio, device=options.device)
    return Planned(wanted, model, ratio_zoo(ratio), None), training


def _holds(zoo: Zoo, model: str, poison_ratio: float) -> bool:
    try:
        return zoo.card(model).poison_ratio == poison_ratio
    except (CheckpointError, UnknownNameError):
        return False


def _unlike(table: str, variants: Sequence[str], card: Card) -> list[str]:
    """One sentence for each set of settings in which NPD and its variants are not as in the paper."""
    said: dict[str, list[str]] = {}
    for variant in variants:
        ours = preset(card.dataset, variant=variant).to_dict()
        theirs = preset(card.dataset, "paper", variant=variant).to_dict()
        parts = [
            f"{name} {value} instead of {theirs[name]}"
            for name, value in ours.items()
            if value != theirs[name]
        ]
        layer = default_layer(card.arch, card.dataset)
        if layer != PAPER_LAYERS[card.arch] and table != "figure3":
            parts.insert(0, f"at {layer} instead of {PAPER_LAYERS[card.arch]}")
        said.setdefault(", ".join(parts), []).append(DEFENSES[variant])
    return [f"{', '.join(names)}: {parts}." for parts, names in said.items() if parts]


def _apart(variants: Sequence[str], card: Card) -> list[str]:
    """One sentence on the settings in which the variants are not like each other."""
    configs = {variant: preset(card.dataset, variant=variant).to_dict() for variant in variants}
    said: dict[str, list[str]] = {}
    for variant, config in configs.items():
        parts = [
            f"{name} {value}"
            for name, value in config.items()
            if any(c[name] != value for c in configs.values())
        ]
        said.setdefault(", ".join(parts), []).append(DEFENSES[variant])
    if len(said) < 2:
        return []
    parts = [f"{', '.join(names)} with {settings}" for settings, names in said.items()]
    return [f"The variants differ in more than the perturbation: {'; '.join(parts)}."]


def _longer(cards: Sequence[Card], ratios: Sequence[Any]) -> list[str]:
    """One sentence on models of the zoo that had more training than `npd table` gives those of other
    ratios."""
    more = [(card, sum(epochs for epochs, _ in card.recipe.get("again", ()))) for card in cards]
    parts = [
        f"{card.id} ({card.poison_ratio:.0%}, {epochs} epochs more)"
        for card, epochs in more
        if epochs and card.poison_ratio in ratios
    ]
    return [f"Trained longer than the models of the other ratios: {', '.join(parts)}."] if parts else []


def _baselines(changes: Mapping[str, Mapping[str, Any]], defenses: Sequence[str], card: Card) -> list[str]:
    """One sentence for each baseline whose settings are not those of the reference benchmark."""
    said = []
    for defense in defenses:
        ours = defense_config(defense, card, **changes.get(defense, {})).to_dict()
        theirs = _benchmark(defense, card.dataset)
        parts = [
            f"{name} {value} instead of {theirs[name]}"
            for name, value in ours.items()
            if value != theirs[name] and name not in OF_THE_IMAGES
        ]
        said += [f"{DEFENSES[defense]}: {', '.join(parts)}."] if parts else []
    return said


def _benchmark(defense: str, dataset: str) -> dict[str, Any]:
    """Settings of a baseline in the reference benchmark; what it has not run, as on CIFAR-10."""
    theirs = CONFIGS[defense]().to_dict()
    if dataset == "tiny_imagenet":
        theirs |= BASELINE_DEFAULTS[dataset].get(defense, {})
    return theirs | BENCHMARK.get(defense, {})
