"""Planted backdoors, and the choice of settings by them."""

from __future__ import annotations

import json

import pytest
import torch

from npd_core.cli import main as cli
from npd_core.config.npd import NPDConfig
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.experiments import plants
from npd_core.experiments.plants import PLANTS, Plant, halves, judge, plant, random_trigger
from npd_core.experiments.suggest import Candidate, Judged, choose, default_candidates, planted_scores, scores
from npd_core.metrics import Metrics
from npd_core.zoo import Zoo

CPU = torch.device("cpu")
ONE_EPOCH = NPDConfig(epochs=1, warmup_epochs=0, attack_on="base", inner_steps=1)


def clean_signs(count: int) -> ImageSet:
    chosen = load_clean("signs", count, 0)
    return ImageSet(chosen.images, chosen.labels)


def judged(name: str, metrics: tuple[float, float, float]) -> Judged:
    return Judged(Candidate(name, "layer", ONE_EPOCH), "patch", Metrics(*metrics), 2.0)


@pytest.mark.parametrize("family", PLANTS)
def test_a_planted_trigger_is_the_same_for_every_image_and_stays_in_range(family, tiny_zoo):
    net, data = Zoo().load(tiny_zoo).net, clean_signs(24)
    trigger = random_trigger(family, data, net, 3, torch.Generator().manual_seed(0))
    x = 0.3 + 0.4 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    changed = trigger(x)
    assert changed.shape == x.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed[2:3], trigger(x[2:3]))
    covered = (changed != x).any(1).float().mean((1, 2))
    assert (float(covered.max()) < 0.05) == (family in ("patch", "optimized"))
    if family == "field":
        added = changed - x
        assert torch.allclose(added[0], added[1], atol=1e-6)


def test_an_optimized_patch_leads_more_images_to_its_target_than_a_random_one(tiny_zoo):
    net, data = Zoo().load(tiny_zoo).net, clean_signs(48)
    found = {}
    for family in ("patch", "optimized"):
        hits = []
        for seed in range(3):
            trigger = random_trigger(family, data, net, 5, torch.Generator().manual_seed(seed))
            hits.append(judge(net, data, trigger, 5, CPU).asr)
        found[family] = sum(hits)
    assert found["optimized"] > found["patch"]


def test_unknown_plants_and_classes_of_one_image_are_refused(tiny_zoo):
    net, data = Zoo().load(tiny_zoo).net, clean_signs(24)
    with pytest.raises(UnknownNameError, match="weed"):
        random_trigger("weed", data, net, 0, torch.Generator())
    with pytest.raises(ConfigError, match="2 clean images"):
        halves(clean_signs(12), 0)


def test_halves_are_disjoint_and_have_half_of_every_class():
    data = clean_signs(60)
    first, second = halves(data, 1)
    assert first.labels.bincount().tolist() == [2] * 12
    assert second.labels.bincount().tolist() == [3] * 12
    both = torch.cat([first.images, second.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(data.images.flatten(1).unique(dim=0)) == 60


def test_a_planted_backdoor_takes_and_the_network_itself_stays(tiny_zoo, monkeypatch):
    monkeypatch.setattr(plants, "LR", 3e-3)  # for a network of width 4
    net = Zoo().load(tiny_zoo).net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train, held_out = halves(clean_signs(240), 0)
    planted = plant(net, train, held_out, "optimized", 1, CPU)
    assert planted.took
    assert planted.metrics.asr >= plants.TAKES
    assert judge(net, held_out, planted.trigger, planted.target, CPU).asr < planted.metrics.asr
    assert judge(planted.net, held_out, planted.trigger, planted.target, CPU) == planted.metrics
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    statistics = [name for name in before if "running" in name]
    assert all(torch.equal(planted.net.state_dict()[name], before[name]) for name in statistics)


def test_judging_counts_image_by_image(tiny_zoo):
    net, data = Zoo().load(tiny_zoo).net, clean_signs(24)
    trigger = random_trigger("field", data, net, 0, torch.Generator().manual_seed(0))
    found = judge(net, data, trigger, 2, CPU)
    correct = asr = ra = others = 0
    for image, label in zip(data.images.float() / 255, data.labels.tolist(), strict=True):
        correct += int(net(image[None]).argmax()) == label
        if label != 2:
            called = int(net(trigger(image[None])).argmax())
            others, asr, ra = others + 1, asr + (called == 2), ra + (called == label)
    assert found == pytest.approx((correct / 24, asr / others, ra / others))


def test_the_choice_weighs_the_mean_and_the_worst_plant_alike_and_prefers_the_first():
    found = scores(
        [
            judged("even", (0.9, 0.0, 0.8)), judged("even", (0.9, 0.0, 0.8)),
            judged("uneven", (0.9, 0.0, 0.9)), judged("uneven", (0.9, 0.5, 0.5)),
            judged("as good", (0.9, 0.0, 0.8)), judged("as good", (0.9, 0.0, 0.805)),
        ]
    )  # fmt: skip
    assert [s.candidate.name for s in found] == ["even", "uneven", "as good"]
    assert (found[1].mean, found[1].worst) == pytest.approx((1.35, 0.9))
    assert found[1].value == pytest.approx((1.35 + 0.9) / 2)
    assert found[1].metrics == pytest.approx((0.9, 0.25, 0.7))
    assert choose(found).candidate.name == "even"


def test_backdoors_that_do_not_take_are_said_and_end_without_a_choice(tiny_zoo, monkeypatch):
    monkeypatch.setattr(plants, "EPOCHS", 0)
    candidates = default_candidates(ONE_EPOCH, "stream:layer4.1")
    events = planted_scores(Zoo().load(tiny_zoo).net, clean_signs(24), candidates, 32, CPU, ("patch",))
    first = next(events)
    assert isinstance(first, Plant)
    assert not first.took
    with pytest.raises(ConfigError, match="patch"):
        next(events)


def test_the_command_shows_every_candidate_and_what_to_run(tiny_zoo, capsys, monkeypatch):
    monkeypatch.setattr(plants, "LR", 3e-3)
    words = ["suggest", tiny_zoo, "--layers", "stream:layer4.1", "--plants", "optimized", "--clean", "240"]
    words += ["--epochs", "1", "--seed", "1", "--device", "cpu"]
    assert cli.main([*words, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [p["family"] for p in value["plants"]] == ["optimized"]
    assert value["plants"][0]["took"]
    assert value["chosen"] in [c["name"] for c in value["candidates"]]
    assert [c["layer"] for c in value["candidates"]][-1] == "stream:layer4.1"
    assert len(value["candidates"]) == 5
    assert all(c["worst"] <= c["mean"] <= 2 for c in value["candidates"])
    assert len(value["sha256"]) == 64
