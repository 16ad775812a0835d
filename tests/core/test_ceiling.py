"""The ceiling of RA: a polarizer trained with the real trigger."""

from __future__ import annotations

import json

import pytest
import torch

from npd_core import evaluation
from npd_core.cli import main as cli
from npd_core.data.load import load_dataset
from npd_core.polarizer import ceiling
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.zoo import Zoo

CPU = torch.device("cpu")
LAYER = "stream:layer3.0"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ceiling, "IMAGES", 300)
    monkeypatch.setattr(ceiling, "EPOCHS", 6)


def test_the_ceiling_brings_the_true_class_back_by_the_polarizer_alone(tiny_zoo, small):
    backdoored = Zoo().load(tiny_zoo)
    sets = evaluation.test_sets("signs", backdoored.attack, 300)
    net = PolarizedNet(backdoored.net, LAYER, 32)
    frozen = {n: v.clone() for n, v in net.state_dict().items() if "polarizer" not in n}
    before = evaluation.evaluate(net, sets)
    ceiling.train_ceiling(net, load_dataset("signs", "train"), backdoored.attack, CPU)
    after = evaluation.evaluate(net, sets)
    assert after.ra > before.ra + 0.2
    assert after.asr < before.asr - 0.2
    assert not net.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in frozen.items())


def test_the_same_seed_gives_the_same_ceiling(tiny_zoo, small, monkeypatch):
    monkeypatch.setattr(ceiling, "EPOCHS", 1)
    states = []
    for seed in (0, 0, 1):
        backdoored = Zoo().load(tiny_zoo)
        net = PolarizedNet(backdoored.net, LAYER, 32)
        ceiling.train_ceiling(net, load_dataset("signs", "train"), backdoored.attack, CPU, seed)
        states.append(net.polarizer.conv.weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_command_measures_the_ceiling_beside_the_model(tiny_zoo, small, capsys):
    words = ["evaluate", tiny_zoo, "--ceiling", "--layer", LAYER, "--images", "200", "--device", "cpu"]
    assert cli.main([*words, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["ceiling"]["layer"] == LAYER
    assert value["ceiling"]["ra"] > value["before"]["ra"]
