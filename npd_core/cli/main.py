"""The command line: `npd`, also `python -m npd_core`. Like a page, it only asks and shows.

Exit codes: 0 done; 1 measured, and the answer is bad (a training that diverged, a model that does not verify);
2 asked for something that cannot be done, with one line that says why; 130 interrupted, with nothing half-written.

Torch is imported by the commands that need it, inside them: `npd models` and `npd --help` answer at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import inspect
import json
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import npd_core
from npd_core.cli import experiments, export
from npd_core.cli.common import (
    PAPER_SETTINGS,
    Answer,
    Parser,
    progress_bar,
    read_number,
    read_number_or_none,
    read_positive,
    read_share_or_count,
    read_value,
    read_whole,
    read_words,
    text_table,
)
from npd_core.config.npd import BN_MODES, INNER_STEPS, LOG_FORMS, NORMS, VARIANTS, NPDConfig
from npd_core.config.presets import BASELINE_DEFAULTS, defense_config, preset
from npd_core.data.spec import DATASETS
from npd_core.defenses import CONFIGS, DEFENSES, DefenseConfig, get_defense
from npd_core.errors import (
    CheckpointError,
    ConfigError,
    DataMissingError,
    NPDError,
    StorageError,
    unknown_name,
)
from npd_core.events import EpochEnd, Event, Failed, Finished, Measured, Started, StepEnd, to_record
from npd_core.fileio import write_json
from npd_core.plugins import load_plugins
from npd_core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID
    from torch.nn import Module

    from npd_core.zoo.card import Card
    from npd_core.zoo.weights import Backdoored

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


SAVED = {
    "request.json", "state.json", "events.jsonl", "result.json", "stop", "polarizer.json", "polarizer.safetensors",
    "repaired.json", "model.safetensors", "epochs", "gallery.json", "gallery.png",
}  # fmt: skip
"""Names that a saved run may hold, and with it be replaced."""
INTERRUPTED = "interrupted; nothing was left half-written."
IN_HASTE = (
    "interrupted in haste; half-written files, hidden or ending in .partial, may be left and can be deleted."
)
PATIENCE = 5.0
"""Seconds that tidying up may take after Ctrl-C."""


class _Leaving:
    """How the process ends when Ctrl-C or `kill` tells it to: tidied up, there and then.

    The signal becomes a KeyboardInterrupt, so that everything on its way out removes what it has half-written. Not so
    within an import: as torch goes on importing for seconds, the exception may be swallowed, leave the import lock held
    for ever, or change the exit code. There, and when the way out takes longer than PATIENCE or a second signal comes,
    the process ends at once, with what is in `undo`.
    """

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        """What to tidy up even then, newest last."""
        self.asked = 0
        """Number of the signal that came; 0: none."""
        self._busy = False

    def install(self) -> None:
        """From now on; a signal that the parent process ignores stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, lambda *_: self.leave(IN_HASTE))

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Leave only after the block: files that belong together are written and moved into place."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self.asked:
                self._unwind()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = bool(self.asked), number
        if self._busy:
            return
        if again:
            self.leave(IN_HASTE)
        if not _inside_a_command(frame):
            self.leave()
        self._unwind()

    def _unwind(self) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        raise KeyboardInterrupt

    def leave(self, said: str = INTERRUPTED) -> NoReturn:
        """Tidy up and end the process; no thread and no worker is waited for."""
        for undo in reversed(self.undo):
            with contextlib.suppress(Exception):
                undo()
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        os.write(2, f"{show_cursor}npd: {said}\n".encode())
        os._exit(128 + self.asked)


def _inside_a_command(frame: FrameType | None) -> bool:
    """Whether an exception raised in this frame is sure to reach `main`: not from within an import."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        if frame.f_code is _run.__code__:
            return True
        frame = frame.f_back
    return False


_leaving = _Leaving()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Args: argv: without the program's name; None: those of the process. Returns the exit code."""
    try:
        if argv is None:
            _leaving.install()
        return _run(sys.argv[1:] if argv is None else argv)
    except NPDError as error:
        if not _leaving.asked:  # else it is what somebody made of the interruption
            _complain(str(error))
            return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        pass
    gc.collect()  # trainings that were waiting for their next step tidy up as they are forgotten
    if _leaving.asked:
        _leaving.leave()
    _complain(INTERRUPTED)  # where this function was called from Python, not from a shell
    return 130


def _run(argv: Sequence[str]) -> int:
    load_plugins()
    args = build_parser().parse(argv)
    _check_writable(args.json)
    with contextlib.redirect_stdout(sys.stderr) if args.json == "-" else contextlib.nullcontext():
        answer: Answer = args.command(args)
    with _leaving.later():
        _say(answer, args.json)
    return answer.code


# what the commands do


def models(args: argparse.Namespace) -> Answer:
    """`npd models`"""
    from npd_core.data.load import availability
    from npd_core.zoo import Zoo

    unreadable = Zoo().unreadable()
    for sentence in unreadable:
        _complain(sentence)
    rows: list[dict[str, Any]] = [
        {
            "id": card.id,
            "dataset": card.dataset,
            "attack": card.attack,
            "arch": card.arch,
            "width": card.width,
            "acc": card.acc,
            "asr": card.asr,
            "ra": card.ra,
            "bytes": card.bytes,
            "data_available": availability(card.dataset).available,
        }
        for card in Zoo().cards(clean=True)
    ]
    if not rows and unreadable:
        return Answer(rows, "No model of the zoo can be read.")
    if not rows:
        return Answer(rows, "The zoo is empty: `npd zoo train ID` makes a model.")
    lines = [
        (
            r["id"],
            _percent(r["acc"]),
            _percent(r["asr"]),
            _size(r["bytes"]),
            "yes" if r["data_available"] else "no",
        )
        for r in rows
    ]
    return Answer(rows, text_table(("model", "ACC %", "ASR %", "size", "data here"), lines))


def data_list(args: argparse.Namespace) -> Answer:
    """`npd data list`"""
    from npd_core.data.load import availability
    from npd_core.data.spec import DATASETS

    found = [(spec, availability(name)) for name, spec in DATASETS.items()]
    rows = [
        {
            "name": name.name,
            "title": spec.title,
            "available": name.available,
            "splits": dict(name.splits),
            "reason": name.reason,
            "source": spec.source,
        }
        for spec, name in found
    ]
    lines: list[tuple[str, ...]] = []
    for spec, a in found:
        where = [*a.splits.items()] + ([] if a.available else [("-", a.reason)])
        first = (spec.id, "yes" if a.available else "no")
        lines += [(*(first if row == 0 else ("", "")), *what) for row, what in enumerate(where)]
    return Answer(rows, text_table(("data set", "here", "split", "where"), lines))


def data_get(args: argparse.Namespace) -> Answer:
    """`npd data get NAME`"""
    from npd_core.data.download import get_dataset_files
    from npd_core.data.spec import get_dataset

    spec = get_dataset(args.name)
    with progress_bar("{task.percentage:>3.0f} %") as bar:
        task = bar.add_task(spec.title, total=None)
        found = get_dataset_files(
            spec.id, progress=lambda done, total: bar.update(task, completed=done, total=total or None)
        )
    splits = dict(found.splits)
    text = f"{spec.title} is here:\n" + "\n".join(f"  {split}: {where}" for split, where in splits.items())
    return Answer({"name": spec.id, "available": found.available, "splits": splits}, text)


def defend(args: argparse.Namespace) -> Answer:
    """`npd defend MODEL`"""
    from npd_core.config.request import DefenseRequest
    from npd_core.zoo import Zoo

    config = _config(args, Zoo().card(args.model))
    request = DefenseRequest(
        model=args.model,
        defense=args.defense,
        layer=args.layer,
        clean=args.clean,
        config=config,
        eval_images=args.eval_images,
        device=args.device,
    )
    with _staged(args.save) as folder:
        from npd_core.defend import run_defense
        from npd_core.runs.event_log import Thinner
        from npd_core.runs.store import write_record

        thin, records = Thinner(), []
        last: Event | None = None
        for last in _shown(run_defense(request, folder), f"{args.defense} on {args.model}"):
            records += [to_record(event) | {"time": round(time.time(), 3)} for event in thin(last)]
        if not isinstance(last, Finished | Failed):
            raise AssertionError("a training ends with Finished or Failed")
        result = dict(last.result)
        if folder is not None:
            write_record(folder, request, records)
    value = {name: part for name, part in result.items() if name != "clean_indices"}
    text = _before_after(result, request.defense) if result else ""
    text += "".join(f"\n{note}" for note in _notes(result))
    if args.save is not None:
        text += f"\nSaved in {args.save}"
    if isinstance(last, Failed):
        _complain(f"the training failed: {last.reason}")
        return Answer(value | {"failed": last.reason}, text, code=1)
    return Answer(value, text)


def compare(args: argparse.Namespace) -> Answer:
    """`npd compare MODEL`"""
    from npd_core.config.request import DefenseRequest
    from npd_core.zoo import Zoo

    names = tuple(DEFENSES) if args.defenses == "all" else tuple(dict.fromkeys(args.defenses.split(",")))
    for name in names:
        if name not in DEFENSES:
            raise unknown_name("defense", name, ("all", *DEFENSES))
    card = Zoo().card(args.model)
    seed = {} if args.seed is None else {"seed": args.seed}
    common = {"model": card.id, "clean": args.clean, "device": args.device}
    requests = [DefenseRequest(defense=name, config=_preset(name, card, seed), **common) for name in names]

    import npd_core.evaluation as evaluation
    from npd_core.data.clean import load_clean
    from npd_core.defend import run_defense
    from npd_core.device import environment, resolve_device

    device = resolve_device(args.device)
    backdoored = Zoo().load(card.id)
    load_clean(
        card.dataset, args.clean, requests[0].config.seed
    )  # what ails all of them is said once, and now
    sets = evaluation.test_sets(card.dataset, backdoored.attack)
    before = evaluation.evaluate(backdoored.net, sets, device)
    rows: list[dict[str, Any]] = []
    for request in requests:
        row: dict[str, Any] = {"model": card.id, "defense": request.defense}
        try:
            *_, last = _shown(run_defense(request, before=before), f"{request.defense} on {card.id}")
        except (NPDError, MemoryError, RuntimeError) as error:  # torch says RuntimeError when memory runs out
            row |= {
                "config": request.to_dict(),
                "failed": " ".join(str(error).split()) or type(error).__name__,
            }
        else:
            assert isinstance(last, Finished | Failed)
            row |= {name: part for name, part in last.result.items() if name != "clean_indices"}
            if isinstance(last, Failed):
                row["failed"] = last.reason
        rows.append(row)
        print(f"{request.defense}: {row.get('failed') or 'done'}", file=sys.stderr, flush=True)
    named = evaluation.named(before, sets)
    value = {"model": card.id, "before": named, "defenses": rows, "environment": environment(device)}
    code = 1 if any("failed" in row for row in rows) else 0
    return Answer(value, _comparison(value), code)


def evaluate(args: argparse.Namespace) -> Answer:
    """`npd evaluate MODEL`"""
    from npd_core.zoo import Zoo

    card = Zoo().card(args.model)
    if args.polarizer is not None and not args.polarizer.is_dir():
        raise StorageError(f"There is no folder {args.polarizer}: name one that `npd defend --save` wrote.")

    import npd_core.evaluation as evaluation
    from npd_core.device import environment, resolve_device
    from npd_core.metrics import der

    device = resolve_device(args.device)
    backdoored = Zoo().load(args.model)
    defended = None if args.polarizer is None else _load_defended(args.polarizer, backdoored)
    sets = evaluation.test_sets(card.dataset, backdoored.attack, limit=args.images)
    began = time.perf_counter()
    before = evaluation.evaluate(backdoored.net, sets, device, args.precision)
    after = None if defended is None else evaluation.evaluate(defended, sets, device, args.precision)
    seconds = time.perf_counter() - began
    value: dict[str, Any] = {
        "model": card.id,
        "defense": None if args.polarizer is None else _defense_of(args.polarizer),
        "layer": getattr(defended, "layer", None),
        "before": evaluation.named(before, sets),
        "after": None if after is None else evaluation.named(after, sets),
        "der": None if after is None or not len(sets.poisoned.labels) else der(before, after),
        "seconds": {"train": 0.0, "evaluate": seconds},
        "config": {
            "polarizer": None if args.polarizer is None else str(args.polarizer),
            "images": args.images,
            "precision": args.precision,
            "device": str(device),
        },
        "environment": environment(device),
    }
    return Answer(value, _before_after(value, value["defense"] or "no defense"))


def _load_defended(folder: Path, backdoored: Backdoored) -> Module:
    """The network that `npd defend --save` left in a folder: with a polarizer in it, or repaired by a baseline."""
    from npd_core.defenses.artifact import is_repaired, load_repaired
    from npd_core.polarizer.artifact import load_polarizer

    if is_repaired(folder):
        return load_repaired(folder, backdoored.card)
    return load_polarizer(folder, backdoored.net, backdoored.card)


def _defense_of(folder: Path) -> str:
    """Which defense made what is saved; `npd` where its description does not say."""
    from npd_core.defenses import artifact as repaired
    from npd_core.polarizer import artifact as polarizer

    read = repaired.read_description if repaired.is_repaired(folder) else polarizer.read_description
    config = read(folder).get("config")
    return str(config.get("defense", "npd")) if isinstance(config, dict) else "npd"


PICTURES = ("clean", "poisoned", "difference")


def attack(args: argparse.Namespace) -> Answer:
    """`npd attack ID`"""
    from npd_core.zoo import Zoo

    card = Zoo().card(args.attack) if args.attack in Zoo().ids() else None
    if card is not None and card.asr is None:
        raise ConfigError(
            f"{card.id} has no backdoor, hence no trigger to show: name a backdoored model or an attack."
        )
    dataset = args.dataset or (card.dataset if card else "signs")
    if card is not None and dataset != card.dataset:
        raise ConfigError(f"{card.id} is a model of {card.dataset}, not of {dataset}: leave --dataset out.")
    folder = (args.out or Path(f"attack-{args.attack}")).resolve()
    known = re.compile(rf"\d+-({'|'.join(PICTURES)})\.png")
    if folder.exists() and not (
        folder.is_dir() and all(known.fullmatch(path.name) for path in folder.iterdir())
    ):
        raise ConfigError(
            f"--out {folder} holds something else than pictures of an attack: choose a new folder."
        )

    from PIL import Image

    from npd_core.attacks import ATTACKS, amplified_difference, get_attack
    from npd_core.data.load import class_names, load_dataset
    from npd_core.data.spec import get_dataset
    from npd_core.evaluation import some

    if card is not None:
        chosen = Zoo().load(card.id).attack
    elif args.attack in ATTACKS:
        chosen = get_attack(args.attack, get_dataset(dataset).id)
    else:
        raise unknown_name("attack or model", args.attack, (*ATTACKS, *(card.id for card in Zoo().cards())))
    data = load_dataset(dataset, "test")
    at = some(data.size, min(args.images, data.size))
    clean, labels = data.images[at], data.labels[at]
    poisoned = chosen.apply(clean)
    sets = dict(zip(PICTURES, (clean, poisoned, amplified_difference(clean, poisoned)), strict=True))
    names = class_names(dataset)
    rows = []
    with _replacing(folder) as stage:
        for row, (index, label, target) in enumerate(
            zip(at.tolist(), labels.tolist(), chosen.rule.target(labels).tolist(), strict=True)
        ):
            files = {kind: f"{index:05d}-{kind}.png" for kind in PICTURES}
            for kind, name in files.items():
                picture = Image.fromarray(sets[kind][row].permute(1, 2, 0).numpy())
                try:
                    picture.save(stage / name)
                except OSError as error:
                    remedy = "make room, or name another folder with --out"
                    raise StorageError(
                        f"Cannot write {folder} ({error.strerror or error}): {remedy}."
                    ) from error
            largest = int((poisoned[row].int() - clean[row].int()).abs().max())
            rows.append(
                {"index": index, "label": names[label], "target": names[target], "largest_change": largest}
                | files
            )
    value = {
        "attack": chosen.name,
        "dataset": dataset,
        "model": card.id if card else None,
        "folder": str(folder),
    }
    lines = [(str(r["index"]), r["label"], r["target"], str(r["largest_change"])) for r in rows]
    text = text_table(("image", "true class", "wanted", "largest change of 255"), lines)
    return Answer(value | {"images": rows}, f"{text}\nPictures in {folder}")


def zoo_train(args: argparse.Namespace) -> Answer:
    """`npd zoo train ID`, `npd zoo train --preset paper`"""
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
            _complain(f"{model} is left out: the images of {name.dataset} are not all here, see `npd data`.")
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
    """Train one model; its card."""
    from npd_core.zoo.train import train_model

    training = train_model(
        model,
        poison_ratio=args.poison_ratio,
        epochs=epochs,
        seed=args.seed,
        longer=args.longer,
        device=args.device,
    )
    *_, last = _shown(training, f"training {model}")
    assert isinstance(last, Finished)
    return dict(last.result)


def _trained_text(card: Mapping[str, Any]) -> str:
    shares = (("ACC", "acc"), ("ASR", "asr"), ("RA", "ra"), ("cross ACC", "cross_acc"))
    numbers = " · ".join(
        f"{said} {_percent(card[name])} %" for said, name in shares if card.get(name) is not None
    )
    return f"{card['id']}: {numbers} · trained in {card['seconds']:.0f} s"


def zoo_verify(args: argparse.Namespace) -> Answer:
    """`npd zoo verify [ID ...]`"""
    from npd_core.zoo import Zoo

    names = args.models or Zoo().ids()
    for name in args.models:  # one that does not exist is said before any is measured
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
            ("-",) * 3 if row["measured"] is None else [_percent(share) for share in row["measured"].values()]
        )
        said = {
            True: "ok",
            False: f"NOT OK: {row['reason']}",
            None: f"files ok, not measured: {row['reason']}",
        }
        lines.append((row["model"], *shares, said[row["ok"]]))
    text = text_table(("model", "ACC %", "ASR %", "RA %", "files and numbers"), lines)
    found = {row["ok"] for row in rows}
    return Answer(rows, text, code=1 if False in found else 2 if None in found else 0)


def bench(args: argparse.Namespace) -> Answer:
    """`npd bench`"""
    from npd_core.zoo import Zoo

    names = [Zoo().card(name).id for name in args.models]
    if not names and not Zoo().cards():
        raise ConfigError("The zoo has no backdoored model: `npd zoo train ID` makes one.")

    from npd_core.bench import bench_report, run_bench

    rows = []
    for row in run_bench(names, args.layer, args.device, args.clean, args.attack_on):
        rows.append(row)
        print(f"{row['model']} at {row['layer']}: measured", file=sys.stderr, flush=True)
    if not rows:
        raise DataMissingError("The images of no model of the zoo are here: `npd data` says what is missing.")
    report = bench_report(rows, args.device)
    lines = [
        (
            row["model"],
            row["layer"],
            f"{row['forward_equivalents_per_step']:.2f}",
            f"{row['train_images_per_second']:.0f}",
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['eval_images_per_second']:.0f}",
        )
        for row in rows
    ]
    head = ("model", "layer", "forwards/step", "train img/s", "s/epoch", "eval img/s")
    facts = report["environment"]
    where = (
        f"{facts['device_name']} · {facts['threads']} threads · torch {facts['torch']} · bf16 {facts['bf16']}"
    )
    return Answer(report, f"{text_table(head, lines)}\n{where}")


# how they show it


def _shown(events: Iterable[Event], title: str) -> Iterator[Event]:
    """The same events, drawn as a progress bar on stderr; where that is no terminal, a line an epoch."""
    calm = not sys.stderr.isatty()
    progress = Progress()
    with progress_bar("{task.completed:.0f}/{task.total:.0f} steps · {task.fields[note]}") as bar:
        task: TaskID | None = None
        for event in events:
            progress.add_event(event)
            match event:
                case Started():
                    task = bar.add_task(title, total=progress.total_steps, note="")
                case StepEnd() if task is not None:
                    bar.update(task, completed=progress.steps)
                case EpochEnd() if task is not None:
                    note = f"loss {event.losses.get('total', float('nan')):.3f}"
                    bar.update(task, completed=progress.steps, note=note)
                    if calm:
                        where = "warm-up" if event.epoch < 0 else f"epoch {event.epoch + 1}/{progress.epochs}"
                        print(f"{where} · {note} · {event.seconds:.1f} s", file=sys.stderr, flush=True)
                case Measured():
                    shares = (("ACC", event.acc), ("ASR", event.asr), ("RA", event.ra))
                    said = " · ".join(
                        f"{name} {'-' if share is None else f'{share:.1%}'}" for name, share in shares
                    )
                    note = f"{said} on {event.images} test images"
                    bar.console.print(f"epoch {event.epoch + 1} · {note}", highlight=False)
                case _:
                    pass
            yield event


def _before_after(result: Mapping[str, Any], defense: str) -> str:
    """ACC, ASR and RA before and after, in percent, with what they mean."""
    before, after = result["before"], result["after"]
    meaning = {
        "acc": "clean images given their true class",
        "asr": "triggered images given the attacker's class",
        "ra": "triggered images given their true class",
    }
    lines = []
    for name, means in meaning.items():
        row = [name.upper(), _percent(before[name])]
        if after is not None:
            known = before[name] is not None and after[name] is not None
            change = f"{100 * (after[name] - before[name]):+.2f}" if known else "-"
            row += [_percent(after[name]), change]
        lines.append((*row, means))
    head = ("", "before %", "after %", "change", "") if after is not None else ("", "%", "")
    where = f" at {result['layer']}" if result.get("layer") else ""
    text = f"{result['model']} · {defense}{where}\n{text_table(head, lines)}\n"
    if after is not None:
        text += f"DER {_percent(result['der'])} % · "
    seconds = result["seconds"]
    trained = f"trained in {seconds['train']:.1f} s, " if seconds["train"] else ""
    return text + f"{trained}evaluated in {seconds['evaluate']:.1f} s"


def _comparison(value: Mapping[str, Any]) -> str:
    """One row a defense, in percent and seconds; why one failed, and what one saw that no defender has, below."""
    lines = [("before", *(_percent(value["before"][name]) for name in ("acc", "asr", "ra")), "-", "-")]
    notes = []
    for row in value["defenses"]:
        after, seconds = row.get("after") or {}, row.get("seconds")
        shares = [_percent(after.get(name)) for name in ("acc", "asr", "ra")]
        time_taken = "-" if seconds is None else f"{seconds['train']:.1f}"
        lines.append((row["defense"], *shares, _percent(row.get("der")), time_taken))
        notes += [f"{row['defense']} failed: {row['failed']}"] if "failed" in row else []
        notes += _notes(row)
    table = text_table(("", "ACC %", "ASR %", "RA %", "DER %", "seconds"), lines)
    return "\n".join([str(value["model"]), table, *notes])


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What a defense was shown that a defender with clean images alone does not have."""
    details = result.get("details") or {}
    if details.get("batch") == "mixture":
        return [
            "ep saw a batch of the poisoned training set; --set batch=clean shows it clean images instead."
        ]
    if details.get("select") == "oracle":
        return ["anp chose its threshold by the ASR on test images, which no defender has."]
    return []


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _metrics(metrics: Any) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in ("acc", "asr", "ra")}


def _say(answer: Answer, json_to: str | None) -> None:
    if json_to == "-":
        print(json.dumps(answer.value, indent=2, ensure_ascii=False), flush=True)
        return
    if answer.text:
        print(answer.text, flush=True)
    if json_to is not None:
        write_json(Path(json_to), answer.value, indent=2)


def _complain(message: str) -> None:
    print("npd: " + " ".join(message.split()), file=sys.stderr, flush=True)


# where they write


def _check_writable(json_to: str | None) -> None:
    """Refuse a file that could not be written now, not after minutes of training."""
    if json_to in (None, "-"):
        return
    path = Path(str(json_to))
    if path.is_dir():
        raise StorageError(f"--json {path} is a folder: name a file, or - for the screen.")
    if not path.parent.is_dir():
        raise StorageError(
            f"--json {path}: the folder {path.parent} does not exist; make it, or name another file."
        )
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"--json {path}: no permission to write in {path.parent}; name another file.")


@contextlib.contextmanager
def _staged(folder: Path | None) -> Iterator[Path | None]:
    """As `_replacing`, for a saved run.

    Raises:
        ConfigError: `folder` holds something that is no saved run; a saved run is replaced.
        StorageError: the folder cannot be made.
    """
    if folder is None:
        yield None
        return
    folder = folder.resolve()
    if folder.exists() and not (
        folder.is_dir() and SAVED.issuperset(entry.name for entry in folder.iterdir())
    ):
        raise ConfigError(f"--save {folder} holds something else than a saved run: choose a new folder.")
    with _replacing(folder) as stage:
        yield stage


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Raises StorageError when it cannot be made or moved.
    """
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")

    def clear() -> None:
        shutil.rmtree(stage, ignore_errors=True)

    _leaving.undo.append(clear)
    try:
        try:
            stage.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"Cannot write in {folder.parent} ({error.strerror}): choose another folder."
            ) from error
        yield stage
        try:
            with _leaving.later():
                if folder.exists():
                    shutil.rmtree(folder)
                stage.rename(folder)
        except OSError as error:
            raise StorageError(f"Cannot write {folder} ({error.strerror}): choose another folder.") from error
    finally:
        clear()
        _leaving.undo.remove(clear)


# how they are asked


def build_parser() -> Parser:
    """All commands and their options. Imports nothing but the configs."""
    parser = Parser(
        prog="npd", description="Neural Polarizer Lab: filter a backdoor out with one thin learned layer."
    )
    parser.add_argument("--version", action="version", version=f"npd {npd_core.__version__}")
    parser.set_defaults(parser=parser, json=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(
        to: Any, name: str, command: Callable[[argparse.Namespace], Answer], help: str, **more: Any
    ) -> Parser:
        sub: Parser = to.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", **more)
        sub.set_defaults(command=command, parser=sub)
        _add_json(sub)
        return sub

    add(
        commands,
        "models",
        models,
        "list the pretrained models; those without an ASR are clean, not backdoored",
    )

    data = commands.add_parser("data", help="list the data sets, or download one")
    data.set_defaults(command=data_list, parser=data)
    _add_json(data)
    actions = data.add_subparsers(metavar="ACTION", parser_class=Parser)
    add(actions, "list", data_list, "show which data sets are on this machine")
    get = add(actions, "get", data_get, "download a data set, checked against its checksum")
    get.add_argument("name", metavar="NAME")

    _add_defend(
        add(commands, "defend", defend, "train a defense of one model and measure it before and after")
    )

    side_by_side = add(commands, "compare", compare, "run several defenses of one model, one after the other")
    side_by_side.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")
    side_by_side.add_argument(
        "--defenses",
        metavar="A,B,C",
        default="all",
        help=f"all (default), or some of {', '.join(DEFENSES)}",
    )
    _add_clean(side_by_side)
    side_by_side.add_argument(
        "--seed", metavar="N", type=read_whole, help="of every defense, and of the clean images (0)"
    )
    side_by_side.add_argument("--device", default="auto", help="auto, cpu or cuda")

    measure = add(
        commands, "evaluate", evaluate, "measure ACC, ASR and RA of a model, with or without a saved defense"
    )
    measure.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")
    measure.add_argument(
        "--polarizer", metavar="DIR", type=Path, help="folder that `npd defend --save` wrote"
    )
    measure.add_argument(
        "--images",
        metavar="N",
        type=read_positive,
        help="measure on N test images only, drawn at random but always the same",
    )
    measure.add_argument(
        "--precision",
        choices=CHOICES["precision"],
        default="fp32",
        help="fp32, as everything reported is measured",
    )
    measure.add_argument("--device", default="auto", help="auto, cpu or cuda")

    show = add(
        commands,
        "attack",
        attack,
        "write pictures of an attack: clean, poisoned, and ten times the difference",
    )
    show.add_argument(
        "attack", metavar="ID", help="an attack whose trigger needs no model, or the id of a model"
    )
    show.add_argument(
        "--dataset", metavar="D", help="data set of the pictures (default: signs, or that of the model)"
    )
    show.add_argument("--images", metavar="N", type=read_positive, default=8, help="how many test images (8)")
    show.add_argument("--out", metavar="DIR", type=Path, help="folder for the PNG files (attack-ID)")

    for others in (export, experiments):
        others.add_commands(lambda name, command, help: add(commands, name, command, help))

    zoo = commands.add_parser("zoo", help="make backdoored models, and check them")
    zoo.set_defaults(parser=zoo)
    actions = zoo.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    train = add(
        actions, "train", zoo_train, "train a backdoored model; an interrupted training goes on where it was"
    )
    train.add_argument(
        "model",
        metavar="ID",
        nargs="?",
        help="<dataset>-<attack>-<arch>-w<width>; the attack `clean` plants no backdoor. "
        "What is not given is that of the model's card where the zoo has it, so that it becomes the same again",
    )
    train.add_argument("--poison-ratio", metavar="X", type=read_number, help="share of poisoned images (0.1)")
    train.add_argument(
        "--epochs", metavar="N", type=read_positive, help="default: those of the recipe of the data set"
    )
    train.add_argument(
        "--seed", metavar="N", type=read_whole, help="of the network, its batches and its trigger (0)"
    )
    train.add_argument(
        "--longer",
        metavar="N",
        type=read_positive,
        help="train the model of the zoo on, from where it stands, by a further cycle of N epochs",
    )
    train.add_argument(
        "--preset",
        choices=("paper",),
        metavar="paper",
        help="instead of ID: the paper's models, CIFAR-10, then GTSRB, then VGG19-BN; those in the zoo stay",
    )
    train.add_argument(
        "--width", metavar="W", type=read_positive, help="of the preset's models (64, the paper's)"
    )
    train.add_argument("--attacks", metavar="A,B", type=read_words, help="of the preset's models (all eight)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verify = add(actions, "verify", zoo_verify, "hash the files of the models and measure them anew")
    verify.add_argument("models", metavar="ID", nargs="*", help="default: every model of the zoo")
    verify.add_argument("--device", default="auto", help="auto, cpu or cuda")

    speed = add(commands, "bench", bench, "measure the speed of training and evaluation on this machine")
    speed.add_argument(
        "models", metavar="MODEL", nargs="*", help="default: every backdoored model whose images are here"
    )
    speed.add_argument(
        "--layer", action="append", default=[], help="may be repeated; default: that of the architecture"
    )
    speed.add_argument(
        "--clean", metavar="SHARE|N", type=read_share_or_count, default=0.05, help="clean images (0.05)"
    )
    speed.add_argument("--device", default="auto", help="auto, cpu or cuda")
    speed.add_argument(
        "--attack-on",
        choices=CHOICES["attack_on"],
        help="network that the inner level attacks (that of the preset)",
    )
    return parser


def _add_json(parser: Parser) -> None:
    help = "write the answer as JSON; - for the screen, and nothing else there"
    parser.add_argument("--json", metavar="FILE", default=argparse.SUPPRESS, help=help)


def _add_defend(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="id of a model, see `npd models`")
    parser.add_argument("--defense", default="npd", help=f"{', '.join(DEFENSES)} (default: npd)")
    parser.add_argument(
        "--layer", help="insertion point, such as layer4.1.conv1 (default: that of the architecture)"
    )
    _add_clean(parser)
    parser.add_argument(
        "--eval-images",
        metavar="N",
        type=read_whole,
        default=0,
        help="measure ACC, ASR and RA on N test images after every epoch; the training never sees them",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        help="save the polarizer or the repaired network, its config and all numbers in DIR",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="assignments",
        action="append",
        default=[],
        help="a setting of the defense by its name in the config, those of the baselines are below; may be repeated",
    )
    paper = parser.add_argument_group(
        "settings of the paper", "Unset ones come from the preset of the model's data set and of the defense."
    )
    further = parser.add_argument_group("further settings")
    docs = _field_docs(NPDConfig)
    for field in sorted(
        fields(NPDConfig), key=lambda f: PAPER_SETTINGS.index(f.name) if f.name in PAPER_SETTINGS else 99
    ):
        _add_setting(paper if field.name in PAPER_SETTINGS else further, field, docs.get(field.name, ""))

    for name, baseline in CONFIGS.items():
        values, defense = baseline().to_dict(), DEFENSES[name]
        options = ", ".join(
            f"--{setting.replace('_', '-')}" for setting in SHARED_SETTINGS if setting in values
        )
        special = {
            dataset: changes[name] for dataset, changes in BASELINE_DEFAULTS.items() if name in changes
        }
        text = f"{options}, and --set NAME=VALUE. Defaults: {_assigned(values)}."
        text += "".join(f" On {dataset}: {_assigned(changes)}." for dataset, changes in special.items())
        if name == "ep":
            text += " With mixture it sees a batch of the POISONED training set, with clean one of the clean images."
        origin = ", ".join(filter(None, (defense.title, defense.source)))
        parser.add_argument_group(f"settings of {name} ({origin})", text)


def _add_clean(parser: Parser) -> None:
    parser.add_argument(
        "--clean",
        metavar="SHARE|N",
        type=read_share_or_count,
        default=0.05,
        help="clean images of the defender: a share such as 0.05 (default), or a number of images",
    )


def _annotation(field: Field[Any]) -> str:
    """Return the type of a field as text; a plugin may do without `from __future__ import annotations`."""
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _add_setting(group: argparse._ArgumentGroup, field: Field[Any], doc: str) -> None:
    """One option for one field of the config; absent from the arguments when it was not given."""
    option = "--" + field.name.replace("_", "-")
    presets = {name: getattr(preset(name), field.name) for name in DATASETS}
    presets |= {name: getattr(preset("", variant=name), field.name) for name in VARIANTS}
    special = ", ".join(f"{value} for {name}" for name, value in presets.items() if value != field.default)
    default = f"{field.default} ({special})" if special else str(field.default)
    help = f"{doc} Default: {default}.".strip().replace("%", "%%")
    common: dict[str, Any] = {"dest": f"set_{field.name}", "default": argparse.SUPPRESS, "help": help}
    if field.type == "bool":
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    elif field.name in CHOICES:
        group.add_argument(
            option, choices=CHOICES[field.name], metavar="|".join(CHOICES[field.name]), **common
        )
    else:
        kinds = {"float": read_number, "int": read_whole, "float | None": read_number_or_none}
        group.add_argument(
            option, type=kinds[str(field.type)], metavar="N" if field.type == "int" else "X", **common
        )


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by field name."""
    return {name.removeprefix("set_"): value for name, value in vars(args).items() if name.startswith("set_")}


def _preset(defense: str, card: Card, changes: Mapping[str, Any]) -> NPDConfig | DefenseConfig:
    """The defaults of a defense for a model, with `changes` by field name. Raises UnknownNameError, ConfigError."""
    return defense_config(defense, card, **changes)


def _config(args: argparse.Namespace, card: Card) -> NPDConfig | DefenseConfig:
    """The config that was asked for.

    Raises:
        UnknownNameError: no such defense, or no such setting.
        ConfigError: an option that does not go with the defense, a setting given twice, or a value out of its range.
    """
    defense, given = args.defense, _settings(args)
    known = {field.name: _annotation(field) for field in fields(get_defense(defense).config)}
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
    return _preset(defense, card, given)


def _assigned(values: Mapping[str, Any]) -> str:
    """Settings as `--set` takes them."""

    def shown(value: object) -> str:
        if isinstance(value, list):
            return ",".join(map(shown, value))
        return f"{value:g}" if isinstance(value, float) else str(value).lower()

    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def _field_docs(config: type) -> dict[str, str]:
    """Field -> the docstring below it, in one line."""
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
