"""Run tasks on a Dask cluster. Its workers need this project, and the same zoo and data as this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from npd_core.errors import ConfigError
from npd_core.experiments.workers import Function, Message

PATIENCE = 10.0
"""Seconds to wait for the scheduler, and then for its first worker."""


def run_on_cluster(
    function: Function, tasks: Sequence[Any], scheduler: str, *, patience: float = PATIENCE
) -> Iterator[tuple[int, Message]]:
    """Run all tasks on the cluster of a scheduler. When a worker dies, another one runs its task again.

    Args:
        scheduler: address such as `tcp://10.0.0.1:8786`.
    Yields:
        The number of a task, and its result.
    Raises:
        ConfigError: `distributed` is missing, nothing answers at the address, or the cluster has no worker.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ConfigError(
            "A Dask cluster needs the package `distributed`: pip install 'neural-polarizer-lab[cluster]'."
        ) from None
    try:
        client = Client(scheduler, timeout=patience)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"No Dask scheduler answers at {scheduler} ({reason}): start one with `dask scheduler`."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise ConfigError(
                f"The cluster at {scheduler} has no worker: start some with `dask worker {scheduler}`."
            ) from None
        numbers = {client.submit(_last, function, task, pure=False): n for n, task in enumerate(tasks)}
        for future in as_completed(numbers):
            if future.status == "finished":
                yield numbers[future], future.result()
            else:
                failure = future.exception()
                yield (
                    numbers[future],
                    {"failed": f"{type(failure).__name__}: {' '.join(str(failure).split())}"},
                )


def _last(function: Function, task: Any) -> Message:
    """Return the result alone; runs on the worker."""
    *_, message = function(task)
    return message
