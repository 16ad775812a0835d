"""Carry out one run in its folder: read the request, train, write events and result. Imports torch lazily."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from npd_core.config.request import DefenseRequest
from npd_core.errors import NPDError, out_of_memory
from npd_core.events import Event, Failed, Finished, to_record
from npd_core.fileio import write_json
from npd_core.runs.event_log import Thinner, append_events
from npd_core.runs.store import EVENTS, REQUEST, RESULT, STOP, Ending

RunDefense = Callable[[DefenseRequest, Path, Callable[[], bool]], Generator[Event, None, None]]
"""As `npd_core.defend.run_defense`: yields events, saves to the folder, ends soon after `stop()` is True."""
POLL = 0.2
"""Seconds between two checks for the stop file."""
NO_MEMORY = "Out of memory: use fewer clean images or smaller batches."
UNEXPECTED = "Unexpected error; see the server log. Start the run again or change its settings."

_log = logging.getLogger(__name__)


def work_through(folder: Path, run_defense: RunDefense | None = None) -> Ending:
    """Carry out the run in `folder`. Never raises.

    The run ends early, with its best state kept, once the folder contains a file `stop`.

    Args:
        folder: of the run, with request.json; gets events.jsonl, result.json and what the defense saves.
        run_defense: what trains and measures; None: `npd_core.defend.run_defense`.
    """
    try:
        if run_defense is None:
            from npd_core import defend

            run_defense = defend.run_defense
        return _work(folder, run_defense)
    except NPDError as error:
        return Ending("failed", str(error))
    except BaseException as error:
        _log.exception("Run %s ended with an unexpected error.", folder.name)
        return Ending("failed", NO_MEMORY if out_of_memory(error) else UNEXPECTED)


def _work(folder: Path, run_defense: RunDefense) -> Ending:
    request = DefenseRequest.from_dict(json.loads((folder / REQUEST).read_bytes()))
    thin, last = Thinner(), None
    with (
        append_events(folder / EVENTS) as append,
        closing(run_defense(request, folder, _StopFile(folder / STOP))) as events,
    ):
        for last in events:
            for kept in thin(last):
                append(kept)
    if not isinstance(last, Finished | Failed):
        raise RuntimeError(f"run {folder.name} ended without Finished or Failed")
    if not (folder / RESULT).exists():
        write_json(folder / RESULT, last.result)
    return Ending.of(to_record(last))


class _StopFile:
    """Returns whether the stop file exists; checks the disk a few times a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._next, self._stopped = path, 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._stopped and now >= self._next:
            self._next = now + POLL
            self._stopped = self._path.exists()
        return self._stopped
