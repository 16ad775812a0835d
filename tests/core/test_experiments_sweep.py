"""Sweeps: each job once, measured as a single run would be, kept on disk, and taken from there the next
time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from npd_core.config.npd import NPDConfig
from npd_core.config.request import DefenseRequest
from npd_core.data.load import Availability
from npd_core.defend import run_defense
from npd_core.errors import ConfigError, DataMissingError, UnknownNameError
from npd_core.experiments import sweep as module
from npd_core.experiments.cluster import run_on_cluster
from npd_core.experiments.grid import Grid, requests
from npd_core.experiments.sweep import JobProgress, sweep
from npd_core.experiments.task import Job, Outcome, job_for, run_job
from npd_core.zoo import Zoo

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = 60


def test_what_no_job_can_be_done_with_is_said_before_any(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_local", never)
    nowhere = [replace(job, request=replace(job.request, device="cuda:99")) for job in jobs]
    with pytest.raises(ConfigError, match="cuda:99"):
        list(sweep(nowhere, folder=tmp_path))
    monkeypatch.setattr(
        module, "availability", lambda name: Availability(name, False, reason=f"{name} is not here.")
    )
    with pytest.raises(DataMissingError, match="signs is not here"):
        list(sweep(jobs, folder=tmp_path))


def in_this_process(function, tasks, *, workers=1):
    """Stands in for `run_local`, whose own tests use real processes."""
    for number, task in enumerate(tasks):
        for message in function(task):
            yield number, message


def never(*args, **kwargs):
    raise AssertionError("nothing should be run")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "run_local", in_this_process)


@pytest.fixture
def jobs(tiny_zoo) -> list[Job]:
    settings = {"epochs": (1,), "warmup_epochs": (0,), "batch_size": (12,), "lambda2": (0.0, 0.4)}
    grid = Grid(model=tiny_zoo, layers=("layer4.1.conv1",), clean=(24,), settings=settings)
    return [job_for(request, IMAGES) for request in requests(grid)]


def measured(result) -> dict:
    return {name: result[name] for name in ("before", "after", "der", "layer", "config")}


@cache
def single_run(job: Job) -> dict:
    """The same by one run alone."""
    *_, last = run_defense(job.request, images=IMAGES)
    return measured(last.result)


def outcomes(messages) -> list[Outcome]:
    return [message for message in messages if isinstance(message, Outcome)]


def test_a_job_measures_what_a_single_run_measures_and_is_not_done_twice(here, jobs, tmp_path, monkeypatch):
    messages = list(sweep([*jobs, jobs[0]], folder=tmp_path))
    first = outcomes(messages)
    assert [outcome.job for outcome in first] == jobs
    assert {m.text for m in messages if isinstance(m, JobProgress)} == {"measuring the model", "epoch 1 of 1"}
    for outcome in first:
        assert outcome.failed is None
        assert measured(outcome.result) == single_run(outcome.job)
    assert len(list(tmp_path.iterdir())) == 2

    monkeypatch.setattr(module, "run_local", never)
    again = outcomes(sweep(reversed(jobs), folder=tmp_path))
    assert [outcome.cached for outcome in again] == [True, True]
    assert [(o.job, o.result, o.date) for o in reversed(again)] == [(o.job, o.result, o.date) for o in first]


def test_a_sweep_that_was_left_goes_on_where_it_was(jobs, tmp_path, monkeypatch):
    def fake(function, tasks, *, workers=1):
        for number, _ in enumerate(tasks):
            yield number, "a note"
            yield number, {"result": {}, "failed": None}

    monkeypatch.setattr(module, "run_local", fake)
    running = sweep(jobs, folder=tmp_path)
    while not isinstance(next(running), Outcome):
        pass
    running.close()
    assert len(list(tmp_path.iterdir())) == 1
    rest = outcomes(sweep(jobs, folder=tmp_path))
    assert [outcome.cached for outcome in rest] == [True, False]


@pytest.mark.parametrize("damage", ["", "[]", '{"job": null}', "model", "images"])
def test_what_is_damaged_or_of_another_model_is_not_taken(jobs, tmp_path, monkeypatch, damage):
    done = []

    def fake(function, tasks, *, workers=1):
        done.extend(tasks)
        yield 0, {"result": {"after": len(done)}, "failed": None}

    monkeypatch.setattr(module, "run_local", fake)
    job = jobs[0]
    list(sweep([job], folder=tmp_path))
    (path,) = tmp_path.iterdir()
    if damage in ("model", "images"):  # somebody renamed the file of another job
        values = json.loads(path.read_text())
        values["job"]["sha256" if damage == "model" else "images"] = "0" * 64 if damage == "model" else 61
        path.write_text(json.dumps(values))
    else:
        path.write_text(damage)
    (outcome,) = outcomes(sweep([job], folder=tmp_path))
    assert (outcome.cached, outcome.result) == (False, {"after": 2})
    (outcome,) = outcomes(sweep([job], folder=tmp_path))
    assert outcome.cached


def test_what_was_measured_at_another_standard_point_is_not_taken(tiny_zoo, tmp_path, monkeypatch):
    standard = Zoo().card(tiny_zoo).layer

    def fake(function, tasks, *, workers=1):
        for number, job in enumerate(tasks):
            yield number, {"result": {"layer": job.request.layer or standard}, "failed": None}

    monkeypatch.setattr(module, "run_local", fake)
    unnamed = DefenseRequest(model=tiny_zoo, config=NPDConfig(epochs=1))
    named = replace(unnamed, layer=standard)
    jobs = [job_for(request, IMAGES) for request in (unnamed, named)]
    list(sweep(jobs, folder=tmp_path))
    assert [outcome.cached for outcome in outcomes(sweep(jobs, folder=tmp_path))] == [True, True]
    assert standard != "layer3.0.conv1"
    monkeypatch.setattr("npd_core.zoo.card.default_layer", lambda *_: "layer3.0.conv1")
    assert {outcome.job: outcome.cached for outcome in outcomes(sweep(jobs, folder=tmp_path))} == {
        jobs[0]: False,
        jobs[1]: True,
    }


def test_a_retrained_model_is_another_job(jobs):
    job = jobs[0]
    other = Job(request=job.request, sha256="f" * 64, images=job.images)
    assert other.name != job.name
    (message,) = list(run_job(other))
    assert message["result"] is None
    assert message["failed"].startswith(job.request.model)


def test_a_job_that_came_to_nothing_is_said_and_tried_again(here, tiny_zoo, tmp_path, monkeypatch):
    (request,) = requests(Grid(model=tiny_zoo, clean=(24,), layers=("layer4.1.conv1",)))
    job = job_for(request, IMAGES)

    def breaks(*args, **kwargs):
        raise RuntimeError("no memory\nleft")
        yield

    monkeypatch.setattr("npd_core.defend.run_defense", breaks)
    (outcome,) = outcomes(sweep([job], folder=tmp_path))
    assert (outcome.failed, outcome.result) == ("RuntimeError: no memory left", None)
    assert list(tmp_path.iterdir()) == []


def test_seconds_of_shared_machines_are_not_taken_where_time_is_measured(jobs, tmp_path, monkeypatch):
    def fake(function, tasks, *, workers=1):
        for number, _ in enumerate(tasks):
            yield number, {"result": {"workers": workers}, "failed": None}

    monkeypatch.setattr(module, "run_local", fake)
    assert [o.workers for o in outcomes(sweep(jobs, folder=tmp_path, workers=5))] == [2, 2]
    assert all(o.cached for o in outcomes(sweep(jobs, folder=tmp_path)))
    assert [o.cached for o in outcomes(sweep(jobs, folder=tmp_path, alone=True))] == [False, False]
    assert all(o.cached for o in outcomes(sweep(jobs, folder=tmp_path, alone=True)))


def test_seconds_of_a_cluster_are_not_taken_where_time_is_measured(jobs, tmp_path, monkeypatch):
    def fake(function, tasks, scheduler=None, *, workers=1):
        for number, _ in enumerate(tasks):
            yield number, {"result": {"scheduler": scheduler}, "failed": None}

    monkeypatch.setattr(module, "run_on_cluster", fake)
    monkeypatch.setattr(module, "run_local", fake)
    (outcome,) = outcomes(sweep(jobs[:1], folder=tmp_path, scheduler="tcp://somewhere:1"))
    assert (outcome.workers, outcome.result) == (0, {"scheduler": "tcp://somewhere:1"})
    assert outcomes(sweep(jobs[:1], folder=tmp_path))[0].cached
    (alone,) = outcomes(sweep(jobs[:1], folder=tmp_path, alone=True))
    assert (alone.cached, alone.workers, alone.result) == (False, 1, {"scheduler": None})


def test_more_test_images_than_there_are_is_all_of_them(jobs):
    assert job_for(jobs[0].request, 1440) == job_for(jobs[0].request)
    assert job_for(jobs[0].request, 1439).images == 1439


def test_a_job_finds_its_model_in_a_zoo_of_its_own(jobs, tiny_zoo_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "nothing"))
    with pytest.raises(UnknownNameError):
        job_for(jobs[0].request, IMAGES)
    job = job_for(jobs[0].request, IMAGES, Zoo(tiny_zoo_folder))
    assert (job.name, job.to_dict()) == (jobs[0].name, jobs[0].to_dict())
    *_, end = run_job(job)
    assert end["failed"] is None
    assert end["result"]["model"] == job.request.model
    assert os.environ["NPD_ZOO_DIR"] == str(tmp_path / "nothing")


def test_no_worker_is_refused(jobs):
    with pytest.raises(ConfigError, match="`workers`"):
        list(sweep(jobs, workers=0))


# a Dask cluster


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_workers_of_a_dask_cluster(jobs, tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(module, "run_local", never)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        assert len(cluster.workers) == 2
        done = outcomes(sweep(jobs, folder=tmp_path, scheduler=cluster.scheduler_address))
    assert {outcome.job.name for outcome in done} == {job.name for job in jobs}
    for outcome in done:
        assert measured(outcome.result) == single_run(outcome.job)
    assert all(o.cached for o in outcomes(sweep(jobs, folder=tmp_path, scheduler="tcp://nobody:1")))


def test_a_scheduler_that_does_not_answer(jobs):
    with pytest.raises(ConfigError, match="No Dask scheduler answers at nonsense"):
        list(run_on_cluster(run_job, jobs, "nonsense"))


def test_the_package_is_optional(jobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"neural-polarizer-lab\[cluster\]"):
        list(run_on_cluster(run_job, jobs, "tcp://127.0.0.1:8786"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_of_a_dask_cluster_loses_nothing(jobs, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        running = sweep(jobs, folder=tmp_path, scheduler=cluster.scheduler_address)
        first = next(running)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        assert {outcome.job.name for outcome in (first, *running)} == {job.name for job in jobs}
    assert len(list(tmp_path.iterdir())) == 2


# real processes, and an interrupt


def test_ctrl_c_exits_130_keeps_what_was_done_and_leaves_no_process(tiny_zoo, tmp_path):
    words = [tiny_zoo, "--epochs", "1,100000", "--clean", "24", "--batch-size", "12"]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "npd_core",
            "sweep",
            *words,
            "--images",
            "60",
            "--csv",
            str(tmp_path / "runs.csv"),
        ],
        cwd=ROOT,
        env=os.environ | {"NPD_SWEEPS_DIR": str(tmp_path / "sweeps")},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker gets it too
        out, err = process.communicate(timeout=60)
    assert first == "1/2 npd: done\n"
    assert (process.returncode, out) == (130, "")
    assert err == "npd: interrupted; nothing was left half-written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps"]
    (path,) = (tmp_path / "sweeps").iterdir()
    assert json.loads(path.read_text())["job"]["request"]["config"]["epochs"] == 1
    for _ in range(500):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("a worker outlived the command")
