"""A whole run on a tiny zoo: from a request to files and numbers that agree with each other."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from npd_core import defend, evaluation
from npd_core.defend import run_defense
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.evaluation import evaluate
from npd_core.events import EpochEnd, Finished, Measured, StepEnd
from npd_core.polarizer.artifact import load_polarizer
from npd_core.polarizer.config import VARIANTS, NPDConfig
from npd_core.request import DefenseRequest
from npd_core.zoo.weights import load_backdoored

CFG = NPDConfig(epochs=2, warmup_epochs=1, batch_size=32, precision="fp32")


@pytest.fixture
def request_(tiny_zoo):
    return DefenseRequest(model=tiny_zoo, clean=60, config=CFG, device="cpu")


def test_a_run_measures_saves_and_can_be_rebuilt(request_, tmp_path):
    *_, last = run_defense(request_, tmp_path)
    assert isinstance(last, Finished)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(json.dumps(dict(last.result)))
    assert {"model", "defense", "before", "after", "der", "seconds", "config", "environment"} <= set(result)
    assert len(set(result["clean_indices"])) == 60

    backdoored = load_backdoored(request_.model)
    sets = evaluation.test_sets("signs", backdoored.attack)
    net = load_polarizer(tmp_path, backdoored.net, backdoored.card)
    assert evaluate(net, sets)._asdict() == result["after"]
    assert result["before"]["acc"] == pytest.approx(backdoored.card.acc, abs=0.005)
    assert result["before"]["asr"] == pytest.approx(backdoored.card.asr, abs=0.005)


def test_the_same_request_gives_the_same_numbers(request_):
    results = [list(run_defense(request_))[-1].result for _ in range(2)]
    assert results[0]["after"] == results[1]["after"]
    assert results[0]["clean_indices"] == results[1]["clean_indices"]


def test_watching_measures_every_epoch_and_changes_nothing(request_):
    events = list(run_defense(replace(request_, watch=48)))
    watched = [e for e in events if isinstance(e, Measured)]
    assert [e.epoch for e in watched] == [0, 1]
    assert all(e.images == 48 for e in watched)
    assert events[-1].result["after"] == list(run_defense(request_))[-1].result["after"]


def test_stopping_keeps_the_last_completed_epoch_and_still_measures(request_, tmp_path):
    long = replace(request_, config=replace(CFG, epochs=50))
    wanted, seen = itertools.chain([False] * 9, itertools.repeat(True)), []
    for event in run_defense(long, tmp_path, stop=lambda: next(wanted)):
        seen.append(event)
    last = seen[-1]
    assert isinstance(last, Finished)
    assert last.stopped
    done = [e.epoch for e in seen if isinstance(e, EpochEnd)]
    assert last.epoch == done[-1] < 49
    assert (tmp_path / "polarizer.safetensors").is_file()
    assert 0 <= last.result["after"]["acc"] <= 1


def test_closing_the_run_leaves_nothing_half_written(request_, tmp_path):
    run = run_defense(request_, tmp_path / "out")
    for event in run:
        if isinstance(event, StepEnd):
            break
    run.close()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_told_what_the_attack_wants_of_a_label_and_nothing_else(request_, monkeypatch, variant):
    told = {}

    def training(net, clean, cfg, device, **more):
        told.update(more, images=clean.images)
        yield Finished(0, 0.0)

    monkeypatch.setattr(defend, "train_polarizer", training)
    monkeypatch.setattr(defend, "evaluate", lambda *_: evaluation.Metrics(1.0, 0.0, 1.0))
    *_, last = run_defense(replace(request_, defense=variant))
    assert last.result["defense"] == last.result["config"]["defense"] == variant
    assert set(told) == {"variant", "known", "images"}
    assert told["variant"] == variant
    assert told["known"](torch.tensor([3, 0, 5])).tolist() == [0, 0, 0]
    assert len(told["images"]) == 60


def test_a_variant_runs_as_the_method_does(request_, tmp_path, monkeypatch):
    monkeypatch.setattr(defend, "test_sets", lambda dataset, attack: evaluation.test_sets(dataset, attack, 48))
    config = replace(CFG, epochs=1, warmup_epochs=0)
    *_, last = run_defense(replace(request_, defense="npd_tu", config=config), tmp_path)
    assert isinstance(last, Finished)
    assert json.loads((tmp_path / "polarizer.json").read_text())["config"]["defense"] == "npd_tu"
    assert 0 <= last.result["after"]["asr"] <= 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "signs-nothing"}, UnknownNameError, "Unknown model"),
        ({"defense": "ndp"}, UnknownNameError, "Did you mean 'npd'"),
        ({"defense": "npd_t"}, UnknownNameError, "Unknown defense 'npd_t'. Did you mean 'npd_t"),
        ({"layer": "layer9"}, UnknownNameError, "Unknown layer"),
        ({"clean": 999_999}, ConfigError, "999999"),
        ({"device": "tpu"}, ConfigError, "auto"),
    ],
)
def test_bad_requests_end_in_one_sentence(request_, change, error, says):
    with pytest.raises(error, match=says):
        next(iter(run_defense(replace(request_, **change))))


def test_the_run_never_touches_the_zoo_model(request_):
    before = load_backdoored(request_.model).net.state_dict()
    list(run_defense(request_))
    after = load_backdoored(request_.model).net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
