"""A polarizer that was saved comes back as it was, fits only its own network, and folds into plain layers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from npd_core.errors import CheckpointError, StorageError
from npd_core.models import build_model
from npd_core.polarizer import artifact
from npd_core.polarizer.artifact import (
    forget_snapshots,
    load_polarizer,
    load_snapshot,
    save_polarizer,
    save_snapshot,
)
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.snapshots import snapshot_epochs
from npd_core.runs.replay import Replay
from npd_core.zoo import Zoo

X = torch.rand(3, 3, 32, 32)


@pytest.fixture(scope="module")
def backdoored():
    torch.manual_seed(0)
    net = build_model("preact_resnet18", 5, 4, (0.5,) * 3, (0.25,) * 3).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return net


@pytest.fixture(scope="module")
def vgg():
    """Its convolutions carry a bias, which must come through."""
    torch.manual_seed(0)
    net = build_model("vgg19_bn", 5, 4, (0.5,) * 3, (0.25,) * 3).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Conv2d):
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return net


def trained(backdoored, layer):
    """A polarizer far from the identity, as after a long training."""
    net = PolarizedNet(backdoored, layer)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in net.polarizer.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return net


@pytest.mark.parametrize("layer", ["layer4.1.conv1", "after:layer2.0.conv1", "stream:layer4.1"])
def test_round_trip_is_bit_identical(backdoored, tmp_path, layer):
    net = trained(backdoored, layer)
    save_polarizer(net, tmp_path, {"model": "m"})
    assert torch.equal(load_polarizer(tmp_path, backdoored)(X), net(X))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["polarizer.json", "polarizer.safetensors"]


@pytest.mark.parametrize(
    "layer",
    [
        "layer4.1.conv1",
        "layer4.0.conv1",
        "layer4.0.shortcut",
        "conv1",
        "after:layer3.1.conv2",
        "after:conv1",
        "stream:layer4.0",
    ],
)
def test_folding_gives_the_same_logits_with_plain_layers(backdoored, layer):
    net = trained(backdoored, layer).double()
    folded = fold(net)
    assert not [m for m in folded.modules() if type(m).__name__ in ("NeuralPolarizer", "Inserted")]
    torch.testing.assert_close(folded(X.double()), net(X.double()))


@pytest.mark.parametrize("layer", ["features.46", "features.0", "after:features.46", "after:features.0"])
def test_a_network_whose_convolutions_carry_a_bias(vgg, tmp_path, layer):
    net = trained(vgg, layer)
    save_polarizer(net, tmp_path, {"model": "m"})
    assert torch.equal(load_polarizer(tmp_path, vgg)(X), net(X))
    folded = fold(net.double())
    assert not [m for m in folded.modules() if type(m).__name__ in ("NeuralPolarizer", "Inserted")]
    torch.testing.assert_close(folded(X.double()), net(X.double()))
    path = f"net.{net.info.layer.module}"
    with torch.no_grad():
        vgg_without = fold(net)
        place = vgg_without.get_submodule(path)
        offset = place.bias if layer.startswith("after:") else place.bias_map
        offset.zero_()
    assert not torch.allclose(vgg_without(X.double()), net(X.double())), "the offset decides something here"


def test_a_bias_number_instead_of_the_map_would_be_wrong_at_the_border(backdoored):
    """Why the map is stored: in front of a zero-padded 3x3 convolution the offset acts less at the border."""
    folded = fold(trained(backdoored, "layer4.1.conv1"))
    bias = folded.get_submodule("net.layer4.1.conv1").bias_map
    assert (bias[0, :, 0, 0] - bias[0, :, 1, 1]).abs().max() > 1e-3


def test_missing_damaged_and_foreign_files_are_refused(backdoored, tmp_path):
    with pytest.raises(CheckpointError, match=r"polarizer\.json.*`npd defend --save`"):
        load_polarizer(tmp_path, backdoored)
    save_polarizer(trained(backdoored, "layer4.1.conv1"), tmp_path, {})
    path = tmp_path / artifact.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=artifact.WEIGHTS):
        load_polarizer(tmp_path, backdoored)
    path.write_bytes(whole)
    other = build_model("preact_resnet18", 5, 8).eval()
    with pytest.raises(CheckpointError, match=r"layer4\.1\.conv1"):
        load_polarizer(tmp_path, other)
    (tmp_path / artifact.DESCRIPTION).write_text(json.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match=artifact.DESCRIPTION):
        load_polarizer(tmp_path, backdoored)
    (tmp_path / artifact.DESCRIPTION).write_text("{")
    with pytest.raises(CheckpointError, match=artifact.DESCRIPTION):
        load_polarizer(tmp_path, backdoored)


@pytest.mark.parametrize(
    "where", [(safetensors.torch, "save_file"), (Path, "write_text")], ids=["weights", "description"]
)
def test_a_full_disk_leaves_the_earlier_save_whole(backdoored, tmp_path, monkeypatch, where):
    first = trained(backdoored, "layer4.1.conv1")
    save_polarizer(first, tmp_path, {})

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*where, full)
    with pytest.raises(StorageError, match=r"polarizer\.safetensors"):
        save_polarizer(trained(backdoored, "layer4.1.conv1"), tmp_path, {})
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["polarizer.json", "polarizer.safetensors"]
    assert torch.equal(load_polarizer(tmp_path, backdoored)(X), first(X))


# the polarizer of every epoch


@pytest.fixture
def card(tiny_zoo):
    return Zoo().card(tiny_zoo)


@pytest.fixture
def run_of_two(tiny_zoo, card, tmp_path):
    """A folder with the polarizers of epochs 0 and 12, and the networks that they make."""
    source = Zoo().load(tiny_zoo).net
    nets = {0: PolarizedNet(source, "stream:layer4.0"), 12: trained(source, "stream:layer4.0")}
    for epoch, net in nets.items():
        save_snapshot(net, tmp_path, epoch, card)
    return source, nets


def test_an_epoch_comes_back_to_the_bit(run_of_two, card, tmp_path):
    source, nets = run_of_two
    assert snapshot_epochs(tmp_path) == [0, 12]
    assert sorted(p.name for p in (tmp_path / "epochs").iterdir()) == ["000.safetensors", "012.safetensors"]
    for epoch, net in nets.items():
        found = load_snapshot(tmp_path, epoch, source, card)
        assert found.layer == "stream:layer4.0"
        assert torch.equal(found(X), net(X))
    assert not torch.equal(nets[0](X), nets[12](X))
    forget_snapshots(tmp_path)
    assert snapshot_epochs(tmp_path) == []


def test_an_epoch_that_is_not_there_names_those_that_are(run_of_two, card, tmp_path):
    with pytest.raises(CheckpointError, match=r"\b3\b.*: 0, 12"):
        load_snapshot(tmp_path, 3, run_of_two[0], card)
    with pytest.raises(CheckpointError, match=r"an-older-run.*epoch 0"):
        load_snapshot(tmp_path / "an-older-run", 0, run_of_two[0], card)


def test_a_changed_epoch_is_refused(run_of_two, card, tmp_path):
    path = tmp_path / "epochs" / "012.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"012.safetensors"):
        load_snapshot(tmp_path, 12, run_of_two[0], card)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"012.safetensors"):
        load_snapshot(tmp_path, 12, run_of_two[0], card)


def test_an_epoch_of_another_model_is_refused(run_of_two, card, tmp_path):
    other = replace(card, id="signs-blended-preact_resnet18-w4")
    with pytest.raises(CheckpointError, match=f"{card.id}.*{other.id}"):
        load_snapshot(tmp_path, 12, run_of_two[0], other)
    anew = replace(card, files=card.files | {"model.safetensors": "0" * 64})
    with pytest.raises(CheckpointError, match=f"weights.*{card.id}"):
        load_snapshot(tmp_path, 12, run_of_two[0], anew)


def test_replayed_answers_are_those_of_each_network(run_of_two, tiny_zoo, tmp_path):
    nets = run_of_two[1]
    replay = Replay(tmp_path, Zoo().load(tiny_zoo), 0)
    images = torch.randint(
        0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    for epoch in (12, 0, 12):
        expected = nets[epoch](images / 255).softmax(1)
        torch.testing.assert_close(replay.probabilities(epoch, images), expected)
    other = images.flip(0)
    torch.testing.assert_close(replay.probabilities(12, other), nets[12](other / 255).softmax(1))
