"""A repaired network that was saved comes back as it was measured, and only for the model that it was made
of."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from npd_core.defenses.artifact import (
    DESCRIPTION,
    WEIGHTS,
    is_repaired,
    load_repaired,
    read_description,
    round_as_stored,
    save_repaired,
)
from npd_core.errors import CheckpointError, StorageError
from npd_core.models import build_model
from npd_core.zoo import Zoo
from npd_core.zoo.card import sha256
from npd_core.zoo.weights import half_precision

X = torch.rand(3, 3, 32, 32)


@pytest.fixture
def card(tiny_zoo):
    return Zoo().card(tiny_zoo)


def repaired(card):
    """The tiny network after something like a fine-tuning: its weights are no numbers of half precision."""
    net = Zoo().load(card.id).net
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.01 * torch.rand_like(tensor))
    return net


def meta(card):
    return {"model": card.id, "model_sha256": card.files["model.safetensors"], "defense": "fp"}


def test_what_was_rounded_comes_back_bit_identical(card, tmp_path):
    net = repaired(card)
    exact = net(X)
    save_repaired(net, tmp_path, meta(card))
    round_as_stored(net)
    again = load_repaired(tmp_path, card)
    assert not torch.equal(net(X), exact)
    torch.testing.assert_close(net(X), exact, rtol=5e-2, atol=5e-2)
    assert torch.equal(again(X), net(X))
    assert not again.training
    assert not any(param.requires_grad for param in again.parameters())
    assert all(param.dtype == torch.float32 for param in again.parameters())


def test_the_folder_describes_itself(card, tmp_path):
    assert not is_repaired(tmp_path)
    save_repaired(repaired(card), tmp_path, meta(card))
    assert is_repaired(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, DESCRIPTION]
    values = read_description(tmp_path)
    assert values["sha256"] == sha256(tmp_path / WEIGHTS)
    assert {name: values[name] for name in meta(card)} == meta(card)


def test_changed_weights_are_refused(card, tmp_path):
    save_repaired(repaired(card), tmp_path, meta(card))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_repaired(tmp_path, card)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_repaired(tmp_path, card)


def test_another_model_and_other_weights_are_refused(card, tmp_path):
    save_repaired(repaired(card), tmp_path, meta(card))
    with pytest.raises(CheckpointError, match=f"{card.id}.*signs-other"):
        load_repaired(tmp_path, replace(card, id="signs-other"))
    with pytest.raises(CheckpointError, match=f"weights.*{card.id}"):
        load_repaired(tmp_path, replace(card, files={"model.safetensors": "0" * 64}))


def test_weights_of_another_shape_are_refused(card, tmp_path):
    save_repaired(build_model(card.arch, card.num_classes, 8, card.mean, card.std), tmp_path, meta(card))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*{card.arch}"):
        load_repaired(tmp_path, card)


def test_missing_weights_in_the_file_are_refused(card, tmp_path):
    save_repaired(repaired(card), tmp_path, meta(card))
    state = half_precision(repaired(card))
    del state["net.linear.bias"]
    save_file(state, tmp_path / WEIGHTS)
    values = read_description(tmp_path) | {"sha256": sha256(tmp_path / WEIGHTS)}
    (tmp_path / DESCRIPTION).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"linear.bias"):
        load_repaired(tmp_path, card)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_damaged_description_is_refused(card, tmp_path, text):
    with pytest.raises(CheckpointError, match=r"repaired\.json.*`npd defend --save`"):
        load_repaired(tmp_path, card)
    (tmp_path / DESCRIPTION).write_text(text)
    with pytest.raises(CheckpointError, match=DESCRIPTION):
        load_repaired(tmp_path, card)


def test_a_folder_that_cannot_be_made_is_one_sentence(card, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="run"):
        save_repaired(repaired(card), tmp_path / "file" / "run", meta(card))
