"""A whole run on a tiny zoo: from a request to files and numbers that agree with each other."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from npd_core import defend, evaluation
from npd_core.attacks import get_attack
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.config.presets import baseline_config, defense_config, preset
from npd_core.config.request import DefenseRequest
from npd_core.data.clean import load_clean
from npd_core.data.load import load_dataset
from npd_core.data.spec import get_dataset
from npd_core.defend import run_defense
from npd_core.defenses import CONFIGS, Defense
from npd_core.defenses.artifact import load_repaired
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.evaluation import evaluate
from npd_core.events import EpochEnd, Failed, Finished, Measured, StepEnd
from npd_core.metrics import Metrics, der
from npd_core.models import build_model
from npd_core.polarizer.artifact import load_polarizer, load_snapshot
from npd_core.polarizer.snapshots import snapshot_epochs
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card

CFG = NPDConfig(epochs=2, warmup_epochs=1, batch_size=32, precision="fp32")
FEW = 48
"""Test images that most runs here are measured on."""


@pytest.fixture
def request_(tiny_zoo):
    return DefenseRequest(model=tiny_zoo, clean=60, config=CFG, device="cpu")


def test_a_run_measures_saves_and_can_be_rebuilt(request_, tmp_path):
    *_, last = run_defense(request_, tmp_path, images=600)
    assert isinstance(last, Finished)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(json.dumps(dict(last.result)))
    assert {"model", "defense", "before", "after", "der", "seconds", "config", "environment"} <= set(result)
    assert len(set(result["clean_indices"])) == 60

    backdoored = Zoo().load(request_.model)
    sets = evaluation.test_sets("signs", backdoored.attack, 600)
    net = load_polarizer(tmp_path, backdoored.net, backdoored.card)
    assert evaluate(net, sets)._asdict() == result["after"]
    assert result["before"]["acc"] == pytest.approx(backdoored.card.acc, abs=0.02)
    assert result["before"]["asr"] == pytest.approx(backdoored.card.asr, abs=0.02)


def test_every_epoch_leaves_the_polarizer_that_was_measured(request_, tmp_path):
    epochs, measured = {}, {}
    for event in run_defense(replace(request_, eval_images=48), tmp_path, images=FEW):
        if isinstance(event, EpochEnd):
            epochs[event.epoch] = snapshot_epochs(tmp_path)
        if isinstance(event, Measured):
            measured[event.epoch + 1] = (event.acc, event.asr, event.ra)
    assert epochs == {-1: [0], 0: [0, 1], 1: [0, 1, 2]}, "each is there when its event is"
    backdoored = Zoo().load(request_.model)
    curve = evaluation.test_sets("signs", backdoored.attack, 48)
    x = curve.poisoned.images[:8].float() / 255
    for epoch, numbers in measured.items():
        net = load_snapshot(tmp_path, epoch, backdoored.net, backdoored.card)
        assert tuple(evaluate(net, curve, precision="auto")) == numbers
    assert torch.equal(net(x), load_polarizer(tmp_path, backdoored.net, backdoored.card)(x))
    start = load_snapshot(tmp_path, 0, backdoored.net)
    assert not torch.equal(start(x), net(x))


def test_without_a_warm_up_epoch_0_is_the_identity_and_old_epochs_are_gone(request_, tmp_path):
    stray = tmp_path / "epochs" / "007.safetensors"
    stray.parent.mkdir()
    stray.write_bytes(b"of another run")
    run = run_defense(replace(request_, config=replace(CFG, warmup_epochs=0)), tmp_path)
    next(run)
    run.close()
    assert snapshot_epochs(tmp_path) == [0]
    backdoored = Zoo().load(request_.model)
    x = torch.rand(4, 3, 32, 32)
    start = load_snapshot(tmp_path, 0, backdoored.net, backdoored.card)
    torch.testing.assert_close(start(x), backdoored.net(x), rtol=1e-3, atol=1e-3)


def test_the_same_request_gives_the_same_numbers(request_):
    results = [list(run_defense(request_, images=600))[-1].result for _ in range(2)]
    assert results[0]["after"] == results[1]["after"]
    assert results[0]["clean_indices"] == results[1]["clean_indices"]


def test_eval_images_are_measured_after_every_epoch_and_change_nothing(request_):
    events = list(run_defense(replace(request_, eval_images=48), images=600))
    measured = [e for e in events if isinstance(e, Measured)]
    assert [e.epoch for e in measured] == [0, 1]
    assert all(e.images == 48 for e in measured)
    assert events[-1].result["after"] == list(run_defense(request_, images=600))[-1].result["after"]


def test_stopping_keeps_the_last_completed_epoch_and_still_measures(request_, tmp_path):
    long = replace(request_, config=replace(CFG, epochs=50))
    answers = itertools.chain([False] * 9, itertools.repeat(True))
    seen = list(run_defense(long, tmp_path, stop=lambda: next(answers), images=FEW))
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
def test_a_variant_is_given_the_clean_images_and_the_label_rule_of_the_attack(request_, monkeypatch, variant):
    given, sizes = {}, []

    def run(self, net, clean, cfg, device, **more):
        given.update(more, images=clean.images)
        yield Finished(0, 0.0)

    def measure(net, sets, *_):
        sizes.append(len(sets.clean.labels))
        return Metrics(1.0, 0.0, 1.0)

    monkeypatch.setattr(Defense, "run", run)
    monkeypatch.setattr(defend, "evaluate", measure)
    *_, last = run_defense(replace(request_, defense=variant))
    assert last.result["defense"] == last.result["config"]["defense"] == variant
    assert set(given) == {"variant", "target_rule", "images"}
    assert given["variant"] == variant
    assert given["target_rule"](torch.tensor([3, 0, 5])).tolist() == [0, 0, 0]
    assert len(given["images"]) == 60
    assert sizes == [get_dataset("signs").test_images] * 2, "numbers are measured on all test images"


def test_a_variant_runs_as_the_method_does(request_, tmp_path):
    config = replace(CFG, epochs=1, warmup_epochs=0)
    *_, last = run_defense(replace(request_, defense="npd_tu", config=config), tmp_path, images=FEW)
    assert isinstance(last, Finished)
    assert json.loads((tmp_path / "polarizer.json").read_text())["config"]["defense"] == "npd_tu"
    assert 0 <= last.result["after"]["asr"] <= 1


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"model": "signs-nothing"}, UnknownNameError, "signs-nothing"),
        ({"defense": "ndp"}, UnknownNameError, "'ndp'.*'npd'"),
        ({"defense": "npd_t"}, UnknownNameError, "'npd_t'.*'npd_t[up]'"),
        ({"layer": "layer9"}, UnknownNameError, "layer9"),
        ({"clean": 999_999}, ConfigError, "999999"),
        ({"device": "tpu"}, ConfigError, "auto"),
    ],
)
def test_bad_requests_are_refused_by_name(request_, change, error, names):
    with pytest.raises(error, match=names):
        next(iter(run_defense(replace(request_, **change))))


def test_the_run_never_touches_the_zoo_model(request_):
    before = Zoo().load(request_.model).net.state_dict()
    list(run_defense(request_, images=FEW))
    after = Zoo().load(request_.model).net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# a baseline

SHORT = {
    "fp": {"epochs": 1, "batch_size": 24},
    "nad": {"epochs": 1, "teacher_epochs": 1, "batch_size": 24},
    "nc": {"epochs": 1, "trigger_epochs": 1, "batch_size": 24, "classes": (0, 1, 2), "outlier": 0.1},
    "anp": {"iterations": 2, "batch_size": 24, "lr": 0.5},
    "i_bau": {"rounds": 1, "batch_size": 24},
    "ep": {"batch_size": 48, "u": 1.0},
}


def baseline(request_, name, **changes):
    config = baseline_config(name, "signs", flip=False, precision="fp32", **SHORT[name] | changes)
    return replace(request_, defense=name, clean=48, config=config)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_baseline_measures_saves_and_comes_back(request_, tmp_path, name):
    events = list(run_defense(baseline(request_, name), tmp_path, images=FEW))
    last = events[-1]
    assert isinstance(last, Finished)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.safetensors",
        "repaired.json",
        "result.json",
    ]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(json.dumps(dict(last.result)))
    assert (result["defense"], result["layer"], len(result["clean_indices"])) == (name, None, 48)
    assert result["details"] == json.loads(json.dumps(dict(last.details)))
    assert result["details"]

    backdoored = Zoo().load(request_.model)
    sets = evaluation.test_sets("signs", backdoored.attack, FEW)
    net = load_repaired(tmp_path, backdoored.card)
    assert evaluate(net, sets)._asdict() == result["after"]
    assert evaluate(backdoored.net, sets)._asdict() == result["before"]
    now, then = net.state_dict(), backdoored.net.state_dict()
    assert not all(torch.equal(now[key], then[key]) for key in then), "the defense did something"
    assert (
        DefenseRequest.from_dict(json.loads((tmp_path / "repaired.json").read_text())["config"]).defense
        == name
    )


def test_eval_images_change_nothing_in_a_baseline(request_):
    request = baseline(request_, "fp", epochs=2)
    events = list(run_defense(replace(request, eval_images=48), images=FEW))
    assert [e.epoch for e in events if isinstance(e, Measured)] == [0, 1]
    assert events[-1].result["after"] == list(run_defense(request, images=FEW))[-1].result["after"]


def test_stopping_a_baseline_keeps_its_last_completed_epoch(request_, tmp_path):
    long, short = (baseline(request_, "fp", epochs=epochs, schedule="constant") for epochs in (9, 2))
    # `stop` is called three times an epoch: after two steps and at the end
    answers = itertools.chain([False] * 7, itertools.repeat(True))
    events = list(run_defense(long, tmp_path / "long", stop=lambda: next(answers), images=FEW))
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.stopped, last.epoch) == (True, 1)
    assert last.seconds == [e.seconds for e in events if isinstance(e, EpochEnd)][-1]
    list(run_defense(short, tmp_path / "short", images=FEW))
    card = Zoo().load(request_.model).card
    one, two = (load_repaired(tmp_path / name, card).state_dict() for name in ("long", "short"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_stop_while_nads_teacher_learns_leaves_the_network_as_it_was(request_, tmp_path):
    answers = itertools.chain([False] * 3, itertools.repeat(True))
    request = baseline(request_, "nad", teacher_epochs=5)
    *_, last = run_defense(request, tmp_path, stop=lambda: next(answers), images=FEW)
    assert (last.stopped, last.epoch) == (True, -1)
    assert last.seconds > 0
    backdoored = Zoo().load(request_.model)
    now, then = load_repaired(tmp_path, backdoored.card).state_dict(), backdoored.net.state_dict()
    assert all(torch.equal(now[key], then[key]) for key in then)


def test_a_baseline_that_fails_leaves_its_last_good_state_and_numbers(request_):
    *_, last = run_defense(baseline(request_, "fp", lr=1e30), images=FEW)
    assert isinstance(last, Failed)
    assert "`lr`" in last.reason
    assert last.result["after"]["acc"] > 0.9
    assert "details" not in last.result


def given(monkeypatch, request):
    """Return the arguments of a baseline, which is not run."""
    arguments = {}

    def run(self, net, clean, cfg, device, **more):
        arguments.update(more, clean=clean, net=net)
        yield Finished(-1, 0.0)

    monkeypatch.setattr(Defense, "run", run)
    list(run_defense(request, images=FEW))
    return arguments


def test_only_the_mixture_of_ep_sees_the_poisoned_training_set(request_, monkeypatch):
    mixture = given(monkeypatch, baseline(request_, "ep"))["mixture"]
    clean = load_dataset("signs", "train")
    backdoored = Zoo().load(request_.model)
    stamped = (mixture.images != clean.images).flatten(1).any(1)
    ratio = backdoored.card.poison_ratio
    assert mixture.size == clean.size
    assert int(stamped.sum()) == round(ratio * clean.size)
    assert torch.equal(mixture.images[stamped], backdoored.attack.apply(clean.images[stamped]))
    assert (mixture.labels[stamped] == 0).all()


def test_ep_needs_a_poisoned_training_set_for_its_mixture(request_, monkeypatch):
    card = replace(Zoo().load(request_.model).card, poison_ratio=0.0)
    assert defense_config("ep", card).batch == "clean"
    found = Zoo().load(request_.model)._replace(card=card)
    monkeypatch.setattr(Zoo, "load", lambda zoo, model: found)
    with pytest.raises(ConfigError, match="`batch`=clean"):
        list(run_defense(baseline(request_, "ep", batch="mixture"), images=FEW))


@pytest.mark.parametrize(
    ("name", "changes"), [("ep", {"batch": "clean"}), ("anp", {}), ("fp", {}), ("nc", {})]
)
def test_other_baselines_see_the_clean_images_alone(request_, monkeypatch, name, changes):
    arguments = given(monkeypatch, baseline(request_, name, **changes))
    assert set(arguments) == {"clean", "net"}
    assert arguments["clean"].size == 48


def test_anps_oracle_measures_on_test_images(request_, monkeypatch):
    arguments = given(monkeypatch, baseline(request_, "anp", select="oracle"))
    backdoored = Zoo().load(request_.model)
    sets = evaluation.test_sets("signs", backdoored.attack, FEW)
    assert set(arguments) == {"clean", "net", "oracle"}
    assert arguments["oracle"](arguments["net"]) == evaluate(backdoored.net, sets)


def test_numbers_known_before_are_not_measured_again(request_):
    known = Metrics(0.75, 0.5, 0.25)
    *_, last = run_defense(baseline(request_, "ep"), before=known, images=FEW)
    assert last.result["before"] == known._asdict()
    after = Metrics(**last.result["after"])
    assert last.result["der"] == der(known, after)


def test_a_run_on_images_of_64_pixels_and_200_classes(real_data, tmp_path, monkeypatch):
    """Tiny ImageNet: the part of its training set that is here, a network, the polarizer, the measurement."""
    spec = get_dataset("tiny_imagenet")
    torch.manual_seed(0)
    net = build_model("preact_resnet18", spec.num_classes, 2, spec.mean, spec.std)
    attack = get_attack("badnets_a2o", spec.id)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    card = Card(
        id="tiny_imagenet-badnets_a2o-preact_resnet18-w2", dataset=spec.id, attack=attack.name,
        attack_params=dict(attack.params), poison_ratio=0.1, target="class 0", arch="preact_resnet18",
        width=2, num_classes=spec.num_classes, image_size=spec.size, mean=spec.mean, std=spec.std, recipe={},
        seed=0, acc=0.0, asr=0.0, ra=0.0, seconds=0.0, versions={},
    )  # fmt: skip
    Zoo().save(net, card)
    shorter = {"epochs": 1, "warmup_epochs": 0, "batch_size": 100, "precision": "fp32"}
    config = replace(preset(spec.id), **shorter)
    request = DefenseRequest(model=card.id, clean=200, config=config, eval_images=100)
    events = list(run_defense(request, tmp_path / "run", images=100))
    result = events[-1].result
    clean = load_clean(spec.id, 200, config.seed)
    assert clean.images.shape == (200, 3, 64, 64)
    assert result["clean_indices"] == clean.indices.tolist()
    assert config.rho == 6.0, "the paper's budget for images of this size"
    sets = evaluation.test_sets(spec.id, attack, 100)
    assert sets.poisoned.images.shape[1:] == (3, 64, 64)
    backdoored = Zoo().load(card.id)
    again = load_polarizer(tmp_path / "run", backdoored.net, backdoored.card)
    assert evaluate(again, sets)._asdict() == result["after"]
    (measured,) = [event for event in events if isinstance(event, Measured)]
    assert measured.images == 100
