"""How commands show a training and its numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from npd_core.cli.common import percent, progress_bar, text_table
from npd_core.events import EpochEnd, Event, Measured, Started, StepEnd
from npd_core.names import CURVES, METRICS
from npd_core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID


def shown(events: Iterable[Event], title: str) -> Iterator[Event]:
    """Yield the events; show a progress bar on stderr, or one line per epoch where that is no terminal."""
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
                    shares = [(METRICS[name].short, getattr(event, name)) for name in CURVES]
                    numbers = " · ".join(
                        f"{name} {'-' if share is None else f'{share:.1%}'}" for name, share in shares
                    )
                    note = f"{numbers} on {event.images} test images"
                    bar.console.print(f"epoch {event.epoch + 1} · {note}", highlight=False)
                case _:
                    pass
            yield event


def before_after(result: Mapping[str, Any], defense: str) -> str:
    """Return ACC, ASR and RA before and after, in percent, each with its explanation."""
    before, after = result["before"], result["after"]
    lines = []
    for name in CURVES:
        row = [METRICS[name].short, percent(before[name])]
        if after is not None:
            known = before[name] is not None and after[name] is not None
            change = f"{100 * (after[name] - before[name]):+.2f}" if known else "-"
            row += [percent(after[name]), change]
        lines.append((*row, METRICS[name].help))
    head = ("", "before %", "after %", "change", "") if after is not None else ("", "%", "")
    where = f" at {result['layer']}" if result.get("layer") else ""
    text = f"{result['model']} · {defense}{where}\n{text_table(head, lines)}\n"
    if after is not None:
        text += f"DER {percent(result['der'])} % · "
    seconds = result["seconds"]
    trained = f"trained in {seconds['train']:.1f} s, " if seconds["train"] else ""
    return text + f"{trained}evaluated in {seconds['evaluate']:.1f} s"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Say what a defense used that a defender with clean images alone does not have."""
    details = result.get("details") or {}
    if details.get("batch") == "mixture":
        return ["ep used a batch of the poisoned training set; --set batch=clean uses clean images instead."]
    if details.get("select") == "oracle":
        return ["anp chose its threshold by the ASR on test images, which no defender has."]
    return []
