"""Options of a defense's config, shared by the commands that train one."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any

from npd_core.cli.common import (
    PAPER_SETTINGS,
    read_number,
    read_number_or_none,
    read_value,
    read_whole,
    read_words,
)
from npd_core.config.baselines import CONFIGS, DefenseConfig
from npd_core.config.npd import BN_MODES, INNER_STEPS, LOG_FORMS, NO_FAMILY, NORMS, NPDConfig
from npd_core.config.presets import (
    BASELINE_DEFAULTS,
    DEFAULT,
    PRESETS,
    VARIANT_DEFAULTS,
    defense_config,
    preset,
)
from npd_core.data.spec import DATASETS
from npd_core.defenses import DEFENSES, get_defense
from npd_core.errors import ConfigError, unknown_name
from npd_core.zoo.card import Card

SHARED_SETTINGS = ("epochs", "lr", "batch_size", "seed", "precision")
"""Options of NPD that set the field of the same name in a baseline's config, where it has one."""
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "bn_mode": BN_MODES,
    "inner_step": INNER_STEPS,
    "log_form": LOG_FORMS,
    "bce1_label": ("true", "pred"),
    "attack_on": ("polarized", "base"),
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "fp32", "bf16"),
}
READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "float": (read_number, "X"),
    "int": (read_whole, "N"),
    "float | None": (read_number_or_none, "X"),
    "tuple[str, ...]": (lambda text: () if text == NO_FAMILY else read_words(text), "NAME,NAME"),
}
"""How an option is read, and how its value is called in the help, by the type of its field."""


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`."""
    parser.add_argument(
        "--preset", metavar="NAME", default=DEFAULT,
        help=f"complete settings of NPD: {', '.join(PRESETS)} ({DEFAULT}); options override them",
    )  # fmt: skip


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--set` and an option for every setting of NPD, and describe the settings of the baselines."""
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="assignments",
        action="append",
        default=[],
        help="a setting of the defense by its name, those of the baselines are below; may be repeated",
    )
    paper = parser.add_argument_group(
        "settings of the paper", "Those that are not given come from the preset."
    )
    further = parser.add_argument_group("further settings")
    docs = _field_docs(NPDConfig)
    for field in sorted(
        fields(NPDConfig), key=lambda f: PAPER_SETTINGS.index(f.name) if f.name in PAPER_SETTINGS else 99
    ):
        _add_setting(paper if field.name in PAPER_SETTINGS else further, field, docs.get(field.name, ""))

    for name, kind in CONFIGS.items():
        _describe_baseline(parser, name, kind)


def _describe_baseline(parser: argparse.ArgumentParser, name: str, kind: type[DefenseConfig]) -> None:
    values, defense = kind().to_dict(), DEFENSES[name]
    options = ", ".join(f"--{setting.replace('_', '-')}" for setting in SHARED_SETTINGS if setting in values)
    special = {dataset: changes[name] for dataset, changes in BASELINE_DEFAULTS.items() if name in changes}
    text = f"{options}, and --set NAME=VALUE. Defaults: {_assigned(values)}."
    text += "".join(f" On {dataset}: {_assigned(changes)}." for dataset, changes in special.items())
    if name == "ep":
        text += " mixture: a batch of the POISONED training set; clean: a batch of the clean images."
    origin = ", ".join(filter(None, (defense.title, defense.source)))
    parser.add_argument_group(f"settings of {name} ({origin})", text)


def _add_setting(group: argparse._ArgumentGroup, field: Field[Any], doc: str) -> None:
    """Add the option of one field of the config; it is absent from the arguments when it is not given."""
    option = "--" + field.name.replace("_", "-")
    presets = {name: getattr(preset(name), field.name) for name in DATASETS}
    presets |= {
        name: changes[field.name] for name, changes in VARIANT_DEFAULTS.items() if field.name in changes
    }
    special = ", ".join(
        f"{_shown(value)} for {name}" for name, value in presets.items() if value != field.default
    )
    default = f"{_shown(field.default)} ({special})" if special else _shown(field.default)
    help = f"{doc} Default: {default}.".strip().replace("%", "%%")
    common: dict[str, Any] = {"dest": f"set_{field.name}", "default": argparse.SUPPRESS, "help": help}
    if field.type == "bool":
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    elif field.name in CHOICES:
        group.add_argument(
            option, choices=CHOICES[field.name], metavar="|".join(CHOICES[field.name]), **common
        )
    else:
        read, metavar = READERS[str(field.type)]
        group.add_argument(option, type=read, metavar=metavar, **common)


def _shown(value: object) -> str:
    return (",".join(value) or NO_FAMILY) if isinstance(value, tuple) else str(value)


def config_of(args: argparse.Namespace, card: Card) -> NPDConfig | DefenseConfig:
    """Return the config that the options ask for.

    Raises:
        UnknownNameError: no such defense, or no such setting.
        ConfigError: an option of another defense, a setting given twice, or a value out of its range.
    """
    defense, given = args.defense, _given(args)
    known = {field.name: annotation(field) for field in fields(get_defense(defense).config)}
    if defense in CONFIGS:
        if args.layer is not None:
            raise ConfigError(
                f"--layer does not go with {defense}, which repairs the whole network: leave it out."
            )
        for name in given:
            if name not in SHARED_SETTINGS or name not in known:
                remedy = f"write --set {name}=VALUE" if name in known else "leave it out"
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} is an option of NPD and does not go with {defense}: {remedy}.")
    for assignment in args.assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set: write NAME=VALUE, got {assignment!r}.")
        if name not in known:
            raise unknown_name(f"setting of {defense}", name, known)
        if name in given:
            raise ConfigError(f"`{name}` was given twice: leave one of them out.")
        try:
            given[name] = read_value(known[name], text)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"--set {name}: {error}.") from None
    return defense_config(defense, card, args.preset, **given)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, by field name."""
    return {name.removeprefix("set_"): value for name, value in vars(args).items() if name.startswith("set_")}


def annotation(field: Field[Any]) -> str:
    """Return the type of a field as text; a plugin may do without `from __future__ import annotations`."""
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _assigned(values: Mapping[str, Any]) -> str:
    """Return settings as `--set` takes them."""

    def shown(value: object) -> str:
        if isinstance(value, list):
            return ",".join(map(shown, value))
        return f"{value:g}" if isinstance(value, float) else str(value).lower()

    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def _field_docs(config: type) -> dict[str, str]:
    """Return for each field the docstring below it, in one line."""
    body = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
        ):
            docs[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs
