"""Fixtures of the page tests: runs and tables of the tiny model, a fake run manager, a way to open a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.events import EpochEnd, Finished, Measured, Started
from npd_core.experiments.record import Cell, Scores, Seconds, TableRecord, table_path, write_table
from npd_core.runs import estimate, queue
from npd_core.runs.store import Owner, Run, RunStore

ROOT = Path(__file__).resolve().parent.parent.parent
BEFORE = {"acc": 0.81, "asr": 0.97, "ra": 0.02}
AFTER = {"acc": 0.79, "asr": 0.03, "ra": 0.74}


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the recorded runs of the project from the page tests."""
    monkeypatch.setattr(paths, "recorded", lambda: tmp_path / "nothing-recorded")


@pytest.fixture(autouse=True)
def nothing_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no training in the background of the page tests."""
    monkeypatch.setattr(estimate, "prepare", lambda request, card: None)


@pytest.fixture
def open_page() -> Callable[..., AppTest]:
    """Open a page of `pages/` alone: `open_page("runs", run="...")`; it has not run yet."""

    def build(name: str, **query: str) -> AppTest:
        page = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=180)
        for key, value in query.items():
            page.query_params[key] = value
        return page

    return build


@pytest.fixture
def make_run(tiny_zoo: str, runs_dir: Path) -> Callable[..., Run]:
    """Store a finished run without training: `make_run(seed=1)`, with settings of NPDConfig."""
    import torch

    from npd_core.polarizer.artifact import save_polarizer
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.zoo import Zoo

    def build(
        layer: str = "layer4.1.conv1", curves: bool = True, polarizer: bool = True, **settings: object
    ) -> Run:
        config = replace(NPDConfig(epochs=2, warmup_epochs=0), **settings)  # type: ignore[arg-type]
        request = DefenseRequest(model=tiny_zoo, layer=layer, config=config, eval_images=20)
        store = RunStore(runs_dir)
        run_id = store.create(request)
        folder = store.get(run_id).folder
        if polarizer:
            net = PolarizedNet(Zoo().load(tiny_zoo).net, layer)
            with torch.no_grad():
                for parameter in net.polarizer.parameters():
                    parameter.mul_(0.9)
            save_polarizer(net, folder, {"model": tiny_zoo})
        with store.writer(run_id) as write:
            write(
                Started(
                    epochs=2, warmup_epochs=0, steps_per_epoch=1, clean_images=24, device="cpu", layer=layer
                )
            )
            for epoch in range(2):
                write(
                    EpochEnd(epoch=epoch, losses={"total": 1.0 - epoch / 4, "bn": 0.1}, seconds=1.0 + epoch)
                )
                if curves:
                    write(
                        Measured(epoch=epoch, acc=0.8, asr=0.5 - 0.4 * epoch, ra=0.3 + 0.4 * epoch, images=20)
                    )
            write(Finished(epoch=1, seconds=2.0))
        if polarizer:
            store.set_result(
                run_id,
                {
                    "model": tiny_zoo,
                    "defense": "npd",
                    "layer": layer,
                    "before": BEFORE,
                    "after": AFTER,
                    "der": 0.96,
                    "seconds": {"train": 2.0, "evaluate": 0.5},
                    "config": request.to_dict(),
                    "clean_indices": [1, 2, 3],
                    "environment": {"device": "cpu"},
                },
            )
        store.set_state(
            run_id,
            "finished" if polarizer else "failed",
            started=1.0,
            ended=2.0,
            message="" if polarizer else "Training diverged.",
        )
        return store.get(run_id)

    return build


@pytest.fixture
def make_baseline(tiny_zoo: str, runs_dir: Path) -> Callable[..., Run]:
    """Store a finished run of a baseline without training: `make_baseline("fp")`."""
    from npd_core.config.presets import defense_config
    from npd_core.defenses.artifact import save_repaired
    from npd_core.zoo import Zoo

    def build(defense: str = "fp", **settings: object) -> Run:
        found = Zoo().load(tiny_zoo)
        config = replace(defense_config(defense, found.card), **settings)  # type: ignore[arg-type]
        request = DefenseRequest(model=tiny_zoo, defense=defense, clean=24, config=config, eval_images=20)
        store = RunStore(runs_dir)
        run_id = store.create(request)
        digest = found.card.files["model.safetensors"]
        meta = {"model": tiny_zoo, "model_sha256": digest, "defense": defense}
        save_repaired(found.net, store.get(run_id).folder, meta)
        store.set_result(
            run_id, {"model": tiny_zoo, "defense": defense, "before": BEFORE, "after": AFTER, "der": 0.96}
        )
        store.set_state(run_id, "finished", started=1.0, ended=2.0)
        return store.get(run_id)

    return build


@pytest.fixture
def make_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TableRecord]:
    """Write the record of a table: `make_table("table1", [cell, ...], "signs")`; else nothing is recorded."""
    monkeypatch.setenv("NPD_TABLES_DIR", str(tmp_path / "tables"))

    def build(
        table: str, cells: list[Cell], dataset: str = "signs", cut: tuple[str, ...] = ()
    ) -> TableRecord:
        record = TableRecord(
            table=table,
            title=table,
            dataset=dataset,
            cut=cut,
            command=f"npd table {table.removeprefix('table')} --dataset {dataset}",
            date="2026-01-02T03:04:05+00:00",
            cells=tuple(cells),
        )
        write_table(record, table_path(table, dataset))
        return record

    return build


@pytest.fixture
def make_cell(tiny_zoo: str) -> Callable[..., Cell]:
    """Make a measured cell of the tiny model: `make_cell({"defense": "fp"}, asr=0.1)`."""

    def build(row: dict[str, Any], acc: float = 0.9, asr: float = 0.1, ra: float = 0.8, **more: Any) -> Cell:
        model, defense = more.pop("model", tiny_zoo), more.pop("defense", row.get("defense", "npd"))
        asked = more.pop("request", None)
        values = {
            "layer": row.get("layer"),
            "before": Scores(0.99, 1.0, 0.0),
            "after": Scores(acc, asr, ra),
            "der": (1.0 - asr - (0.99 - acc) + 1) / 2,
            "seconds": Seconds(2.0, 0.5),
            "config": asked.to_dict() if asked else {},
            "seed": 3,
            "device": "cpu",
            "date": "2026-01-02T03:04:05+00:00",
        }
        return Cell(row=row, model=model, defense=defense, **(values | more))

    return build


class FakeManager:
    """Stands in for the run manager: collects the requests, runs nothing."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)
        self.owner = Owner(folder)
        self.requests: list[DefenseRequest] = []
        self.cancelled: list[str] = []
        self.usable: Callable[[Run], bool] = lambda run: True

    def submit(self, request: DefenseRequest) -> str:
        self.requests.append(request)
        return self.store.join_or_create(request, owner=self.owner.name, usable=self.usable)[0]

    def cancel(self, run_id: str) -> None:
        self.cancelled.append(run_id)

    def position(self, run_id: str) -> int | None:
        return 1


@pytest.fixture
def manager(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    """The run manager of this test: `requests` lists what was submitted."""
    found = FakeManager(runs_dir)
    monkeypatch.setattr(queue, "manager", lambda: found)
    yield found
    found.owner.release()
