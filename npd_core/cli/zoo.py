"""`npd zoo`: train backdoored models, and check them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from npd_core.cli.common import (
    Answer,
    Commands,
    add_device,
    complain,
    percent,
    read_number,
    read_positive,
    read_whole,
    read_words,
    text_table,
)  # fmt: skip
from npd_core.cli.show import shown
from npd_core.errors import CheckpointError, ConfigError, DataMissingError
from npd_core.events import Finished


def add(commands: Commands) -> None:
    """Register the command and its actions."""
    actions = commands.actions(commands.add("zoo", None, "train backdoored models, and check them"), True)
    parser = actions.add(
        "train", train, "train a backdoored model; an interrupted training continues where it was"
    )
    parser.add_argument(
        "model",
        metavar="ID",
        nargs="?",
        help="<dataset>-<attack>-<arch>-w<width>; the attack `clean` plants no backdoor. Options that are "
        "not given come from the model's card where the zoo has it, so that the same model is trained again",
    )
    parser.add_argument(
        "--poison-ratio", metavar="X", type=read_number, help="share of poisoned images (0.1)"
    )
    parser.add_argument(
        "--epochs", metavar="N", type=read_positive, help="default: those of the recipe of the data set"
    )
    parser.add_argument(
        "--seed", metavar="N", type=read_whole, help="of the network, its batches and its trigger (0)"
    )
    parser.add_argument(
        "--longer",
        metavar="N",
        type=read_positive,
        help="continue the training of a model of the zoo by a further cycle of N epochs",
    )
    parser.add_argument(
        "--preset",
        choices=("paper",),
        metavar="paper",
        help="instead of ID: the paper's models, CIFAR-10, then GTSRB, then VGG19-BN; existing models stay",
    )
    parser.add_argument(
        "--width", metavar="W", type=read_positive, help="of the preset's models (64, the paper's)"
    )
    parser.add_argument(
        "--attacks", metavar="A,B", type=read_words, help="of the preset's models (all eight)"
    )
    add_device(parser)
    parser = actions.add("verify", verify, "hash the files of the models and measure the models again")
    parser.add_argument("models", metavar="ID", nargs="*", help="default: every model of the zoo")
    add_device(parser)


def train(args: argparse.Namespace) -> Answer:
    """Train one model, or those of a preset."""
    if (args.model is None) == (args.preset is None):
        raise ConfigError("Name one model to train, or --preset paper for many.")
    if args.preset is None:
        if args.width or args.attacks:
            raise ConfigError("--width and --attacks go with --preset; the id of a model says both.")
        card = _trained(args, args.model, args.epochs)
        return Answer(card, _trained_text(card))
    if args.longer:
        raise ConfigError("--longer goes with the id of a model.")

    from npd_core.data.load import availability
    from npd_core.zoo import Zoo
    from npd_core.zoo.card import model_id
    from npd_core.zoo.train import PAPER_EPOCHS, paper_models, plan

    cards: list[dict[str, Any]] = []
    for name in paper_models(args.width, args.attacks):
        model = model_id(*name)
        if not {"train", "test"} <= availability(name.dataset).splits.keys():
            complain(f"{model} is left out: the images of {name.dataset} are not all here, see `npd data`.")
        elif model in Zoo().ids():
            plan(model, poison_ratio=args.poison_ratio)  # which refuses one of another ratio
            print(f"{model} is in the zoo already", file=sys.stderr, flush=True)
            cards.append(Zoo().card(model).to_dict())
        else:
            cards.append(_trained(args, model, args.epochs or PAPER_EPOCHS[name.dataset]))
            print(_trained_text(cards[-1]), file=sys.stderr, flush=True)
    if not cards:
        raise DataMissingError(
            "The images of no model of the preset are here: `npd data` says what is missing."
        )
    return Answer(cards, "\n".join(map(_trained_text, cards)))


def _trained(args: argparse.Namespace, model: str, epochs: int | None) -> dict[str, Any]:
    """Train one model and return its card."""
    from npd_core.zoo.train import train_model

    training = train_model(
        model,
        poison_ratio=args.poison_ratio,
        epochs=epochs,
        seed=args.seed,
        longer=args.longer,
        device=args.device,
    )
    *_, last = shown(training, f"training {model}")
    assert isinstance(last, Finished)
    return dict(last.result)


def _trained_text(card: Mapping[str, Any]) -> str:
    shares = (("ACC", "acc"), ("ASR", "asr"), ("RA", "ra"), ("cross ACC", "cross_acc"))
    numbers = " · ".join(
        f"{title} {percent(card[name])} %" for title, name in shares if card.get(name) is not None
    )
    return f"{card['id']}: {numbers} · trained in {card['seconds']:.0f} s"


def verify(args: argparse.Namespace) -> Answer:
    """Compare files and numbers of the models with their cards."""
    from npd_core.zoo import Zoo

    names = args.models or Zoo().ids()
    for name in args.models:  # an unknown name is refused before any model is measured
        with contextlib.suppress(CheckpointError):
            Zoo().card(name)
    if not names:
        raise ConfigError("The zoo is empty: `npd zoo train ID` makes a model.")

    from npd_core.zoo.train import verify_model

    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            verdict = verify_model(name, args.device)
        except (
            CheckpointError,
            DataMissingError,
        ) as error:  # without the images, the files alone are known to be good
            ok = None if isinstance(error, DataMissingError) else False
            rows.append({"model": name, "ok": ok, "card": None, "measured": None, "reason": str(error)})
        else:
            reason = "" if verdict.ok else "it measures differently from what its card says"
            card, measured = _metrics(verdict.card), _metrics(verdict.measured)
            rows.append(
                {"model": name, "ok": verdict.ok, "card": card, "measured": measured, "reason": reason}
            )
    lines = []
    for row in rows:
        shares = (
            ("-",) * 3 if row["measured"] is None else [percent(share) for share in row["measured"].values()]
        )
        verdicts = {
            True: "ok",
            False: f"NOT OK: {row['reason']}",
            None: f"files ok, not measured: {row['reason']}",
        }
        lines.append((row["model"], *shares, verdicts[row["ok"]]))
    text = text_table(("model", "ACC %", "ASR %", "RA %", "files and numbers"), lines)
    found = {row["ok"] for row in rows}
    return Answer(rows, text, code=1 if False in found else 2 if None in found else 0)


def _metrics(metrics: Any) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in ("acc", "asr", "ra")}
