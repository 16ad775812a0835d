"""Choosing the insertion point by clean images alone."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from npd_core.cli import main as cli
from npd_core.config.npd import NPDConfig
from npd_core.data.clean import load_clean
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError
from npd_core.evaluation import predict
from npd_core.events import Finished
from npd_core.experiments.suggest import Candidate, candidates, choose, choose_budget, fold_of, reached
from npd_core.zoo import Zoo

CPU = torch.device("cpu")
ONE_EPOCH = NPDConfig(epochs=1, warmup_epochs=0, attack_on="base", inner_steps=1)


def candidate(layer: str, weight: float, loss: float) -> Candidate:
    return Candidate(layer, weight, 0.9, 0.9 - loss, 1.0)


def test_every_fold_has_its_share_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 15 + [2] * 7)
    fold = fold_of(labels, 5, seed=0)
    for label, count in ((0, 10), (1, 15), (2, 7)):
        counts = Counter(fold[labels == label].tolist())
        assert sum(counts.values()) == count
        assert max(counts.values()) - min(counts.get(number, 0) for number in range(5)) <= 1
    assert max(Counter(fold.tolist()).values()) - min(Counter(fold.tolist()).values()) <= 1
    assert torch.equal(fold, fold_of(labels, 5, seed=0))
    assert not torch.equal(fold, fold_of(labels, 5, seed=1))


def test_the_foremost_point_that_is_cheap_enough_is_chosen_with_its_largest_weight():
    found = [
        candidate("front", 0.4, 0.3),
        candidate("front", 0.1, 0.05),
        candidate("middle", 0.4, 0.03),
        candidate("middle", 0.1, 0.01),
        candidate("middle", 0.2, 0.019),
        candidate("back", 0.4, 0.0),
    ]
    assert choose(found, 0.02) == found[4]
    assert choose(found, 0.1) == found[1]
    assert choose(found, -0.1) is None


def test_each_clean_image_is_held_out_once_and_counted(tiny_zoo):
    net = Zoo().load(tiny_zoo).net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    chosen = load_clean("signs", 36, 0)
    clean = ImageSet(chosen.images, chosen.labels)
    events = list(candidates(net, clean, ["stream:layer4.1"], [0.1, 0.4], ONE_EPOCH, 32, CPU, folds=3))
    found = [event for event in events if isinstance(event, Candidate)]
    assert [c.weight for c in found] == [0.1, 0.4]
    right = int(predict(net, clean.images, CPU).argmax(1).eq(clean.labels).sum())
    assert found[0].before == pytest.approx(right / 36)
    assert round(found[0].after * 36) == pytest.approx(found[0].after * 36)
    assert sum(isinstance(event, Finished) for event in events) == 6
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_more_folds_than_images_of_a_class_are_refused(tiny_zoo):
    chosen = load_clean("signs", 36, 0)
    wanted = candidates(
        Zoo().load(tiny_zoo).net, ImageSet(chosen.images, chosen.labels), ["layer4.1.conv1"], [0.1],
        ONE_EPOCH,
        32, CPU, folds=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="from 2 to 3"):
        next(iter(wanted))


def test_the_share_of_images_that_reach_their_surrogate_target_is_counted_image_by_image(tiny_zoo):
    net = Zoo().load(tiny_zoo).net
    chosen = load_clean("signs", 12, 0)
    config = NPDConfig(inner_steps=2, inner_lr=0.1)
    shares = reached(net, ImageSet(chosen.images, chosen.labels), (0.5, 6.0), config, CPU)
    for rho, share in shares.items():
        hits = 0
        for image, label in zip(chosen.images.float() / 255, chosen.labels.tolist(), strict=True):
            order = net(image[None])[0].argsort(descending=True).tolist()
            target = next(k for k in order if k != label)
            delta = torch.zeros_like(image)
            for _ in range(2):
                delta.requires_grad_()
                (-net((image + delta).clamp(0, 1)[None]).log_softmax(1)[0, target]).backward()
                moved = delta.detach() - 0.1 * delta.grad.sign()
                delta = moved * min(1.0, rho / float(moved.norm()))
            hits += int(net((image + delta).clamp(0, 1)[None]).argmax()) == target
        assert share == pytest.approx(hits / 12, abs=1.5 / 12)
    assert shares[0.5] < shares[6.0]
    with pytest.raises(ConfigError, match="rho"):
        reached(net, ImageSet(chosen.images, chosen.labels), (0.0,), config, CPU)


def test_the_smallest_budget_that_is_about_as_good_as_any_is_chosen():
    assert choose_budget({1.5: 0.4, 3.0: 0.77, 6.0: 0.88, 9.0: 0.89}) == 6.0
    assert choose_budget({1.5: 0.87, 3.0: 0.91, 6.0: 0.88}) == 3.0
    assert choose_budget({9.0: 0.1, 3.0: 0.1}) == 3.0


def test_the_command_says_what_to_run_and_with_which_steps(tiny_zoo, capsys):
    words = ["suggest", tiny_zoo, "--layers", "stream:layer4.1,stream:layer4.0", "--rhos", "3,1.5"]
    words += [
        "--inner-steps",
        "3",
        "--clean",
        "48",
        "--folds",
        "2",
        "--held",
        "1",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main([*words, "--max-loss", "1", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["layer"] for c in told["candidates"]] == ["stream:layer4.0", "stream:layer4.1"]
    assert (told["config"]["inner_steps"], told["config"]["epochs"]) == (3, 1)
    assert list(told["reached"]) == ["1.5", "3"]
    assert told["chosen"]["layer"] == "stream:layer4.0"

    assert cli.main([*words, "--max-loss", "1"]) == 0
    said = capsys.readouterr().out
    rho = told["config"]["rho"]
    assert f"npd defend {tiny_zoo} --layer stream:layer4.0 --lambda2 0.1" in said
    assert f"--rho {rho:g} --inner-steps 3" in said
    assert cli.main([*words, "--max-loss", "-1"]) == 0
    assert "-100 points" in capsys.readouterr().out
