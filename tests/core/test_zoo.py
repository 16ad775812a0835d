"""Cards and weights of the zoo."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from npd_core import evaluation
from npd_core.attacks import get_attack
from npd_core.errors import CheckpointError, StorageError, UnknownNameError
from npd_core.models import build_model
from npd_core.zoo import Zoo, train, weights
from npd_core.zoo import card as cards
from npd_core.zoo.train import parse_id, verify_model
from npd_core.zoo.weights import eight_bits, half_precision, restored


def test_round_trip_keeps_the_stored_precision(own_zoo):
    again = Zoo().load(own_zoo.card.id)
    for name, value in own_zoo.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    assert again.card == own_zoo.card
    assert again.card.bytes == (own_zoo.card.folder / cards.WEIGHTS).stat().st_size
    assert not any(p.requires_grad for p in again.net.parameters())
    assert not again.net.training


def test_weights_are_stored_in_half_precision_statistics_in_full(own_zoo):
    stored = load_file(own_zoo.card.folder / cards.WEIGHTS)
    assert stored["net.conv1.weight"].dtype == torch.float16
    assert stored["net.layer1.0.bn1.running_var"].dtype == torch.float32


def test_tampered_and_missing_weights_are_refused_with_the_command_that_helps(own_zoo):
    path = own_zoo.card.folder / cards.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"sha256 .*npd zoo train {own_zoo.card.id}"):
        Zoo().load(own_zoo.card.id)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*npd zoo train {own_zoo.card.id}"):
        Zoo().load(own_zoo.card.id)


def test_weights_of_another_width_are_refused_even_when_the_hash_fits(own_zoo):
    wrong = build_model("preact_resnet18", 12, 8)
    card = Zoo().save(wrong, own_zoo.card)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*preact_resnet18"):
        Zoo().load(card.id)


def test_damaged_and_misplaced_cards_are_refused(own_zoo):
    path = own_zoo.card.folder / cards.CARD
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"id": "other"}))
    with pytest.raises(CheckpointError, match=f"'other'.*{own_zoo.card.id!r}"):
        Zoo().card(own_zoo.card.id)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        Zoo().card(own_zoo.card.id)


def test_a_damaged_card_hides_no_other(own_zoo):
    other = own_zoo.card.folder.with_name("signs-damaged")
    other.mkdir()
    (other / cards.CARD).write_text('{"id": "signs-dam')
    assert Zoo().cards() == [own_zoo.card]
    (message,) = Zoo().unreadable()
    assert str(other / cards.CARD) in message
    with pytest.raises(CheckpointError, match=re.escape(str(other / cards.CARD))):
        Zoo().card("signs-damaged")


def test_unknown_model_names_the_nearest(tiny_zoo):
    with pytest.raises(UnknownNameError, match=f"'{tiny_zoo[:-1]}'.*'{tiny_zoo}'"):
        Zoo().card(tiny_zoo[:-1])


def test_a_full_disk_leaves_the_old_model_whole(own_zoo, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_tensors", full)
    with pytest.raises(StorageError, match=re.escape(str(own_zoo.card.folder))):
        Zoo().save(own_zoo.net, own_zoo.card)
    Zoo().load(own_zoo.card.id)
    assert [p.name for p in own_zoo.card.folder.parent.iterdir()] == [own_zoo.card.id]


def test_a_folder_that_cannot_be_moved_leaves_the_old_model_whole(own_zoo, monkeypatch):
    real = os.replace

    def stuck(source, target):
        if str(target) == str(own_zoo.card.folder) and str(source).endswith(".partial"):
            raise OSError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", stuck)
    with pytest.raises(StorageError, match=re.escape(str(own_zoo.card.folder))):
        Zoo().save(own_zoo.net, own_zoo.card)
    Zoo().load(own_zoo.card.id)
    assert [p.name for p in own_zoo.card.folder.parent.iterdir()] == [own_zoo.card.id]


def test_eight_bits_have_a_scale_an_output_channel_and_come_back_to_half_a_step(own_zoo):
    net = own_zoo.net
    net.net.conv1.weight[0].zero_()
    stored = eight_bits(net)
    weight, scale = stored["net.conv1.weight"], stored["net.conv1.weight" + weights.SCALE]
    assert (weight.dtype, scale.shape) == (torch.int8, (4, 1, 1, 1))
    assert stored["net.layer1.0.bn1.running_var"].dtype == torch.float32
    assert stored["net.layer1.0.bn1.weight"].dtype == torch.float16
    assert weight[1:].abs().flatten(1).amax(1).tolist() == [127] * 3
    again = restored(stored)
    assert again.keys() == net.state_dict().keys()
    off = (again["net.conv1.weight"] - net.net.conv1.weight).abs()
    assert (off <= scale / 2 * (1 + 1e-5)).all()
    half = half_precision(net)
    assert sum(v.nbytes for v in stored.values()) < 0.7 * sum(v.nbytes for v in half.values())

    card = Zoo().save(net, own_zoo.card, stored=stored)
    loaded = Zoo().load(card.id).net
    assert torch.equal(loaded.net.conv1.weight, again["net.conv1.weight"])


def test_a_model_is_stored_in_eight_bits_unless_that_costs_accuracy(own_zoo, monkeypatch):
    sets = evaluation.test_sets("signs", own_zoo.attack, 360)
    cpu = torch.device("cpu")
    stored, measured = train._compact(own_zoo.net, sets, cpu)
    assert stored_types(stored) == {torch.int8}
    assert evaluation.evaluate(own_zoo.net, sets, cpu) == measured
    assert torch.equal(own_zoo.net.net.conv1.weight, restored(stored)["net.conv1.weight"])
    monkeypatch.setattr(train, "LOSS", -1.0)
    assert stored_types(train._compact(own_zoo.net, sets, cpu)[0]) == {torch.float16}


def stored_types(stored):
    return {
        value.dtype for name, value in stored.items() if "conv" in name and not name.endswith(weights.SCALE)
    }


def test_a_model_of_the_papers_width_takes_at_most_12_mb():
    stored = eight_bits(build_model("preact_resnet18", 43, 64))
    assert sum(value.nbytes for value in stored.values()) < 12_000_000


def test_a_card_of_before_there_was_cross_accuracy_still_loads(own_zoo):
    path = own_zoo.card.folder / cards.CARD
    values = json.loads(path.read_text())
    del values["cross_acc"]
    path.write_text(json.dumps(values))
    assert Zoo().card(own_zoo.card.id).cross_acc is None


@pytest.fixture
def own_wanet(own_zoo):
    """The tiny network, untrained for it, under the name of a WaNet model with a field of its own."""
    attack = get_attack("wanet", "signs", seed=5)
    card = replace(
        own_zoo.card, id="signs-wanet-preact_resnet18-w4", attack="wanet", attack_params=attack.params
    )
    return attack, Zoo().save(own_zoo.net, card, attack.assets)


def test_what_a_trigger_is_made_of_comes_back_with_the_model(own_wanet):
    attack, card = own_wanet
    assert set(card.files) == {cards.WEIGHTS, cards.TRIGGER}
    loaded = Zoo().load(card.id).attack
    assert torch.equal(loaded.assets["field"], attack.assets["field"])
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.apply(images), attack.apply(images))


def test_a_changed_missing_or_unfitting_trigger_is_refused(own_zoo, own_wanet):
    _, card = own_wanet
    path = card.folder / cards.TRIGGER
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"trigger\.safetensors: sha256"):
        Zoo().load(card.id)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"trigger\.safetensors.*npd zoo train {card.id}"):
        Zoo().load(card.id)
    Zoo().save(own_zoo.net, card, {"field": torch.zeros(2, 9, 9)})
    with pytest.raises(CheckpointError, match=rf"'field'.*npd zoo train {card.id}"):
        Zoo().load(card.id)


def test_a_clean_network_loads_but_is_not_listed_among_the_backdoored(own_zoo):
    card = replace(
        own_zoo.card, id="signs-clean-preact_resnet18-w4", attack="clean", attack_params={}, asr=None, ra=None
    )
    Zoo().save(own_zoo.net, card)
    assert Zoo().load(card.id).attack.name == "clean"
    assert [c.id for c in Zoo().cards()] == [own_zoo.card.id]
    assert [c.id for c in Zoo().cards(clean=True)] == [own_zoo.card.id, card.id]
    assert verify_model(card.id).ok
    assert parse_id(card.id).attack == "clean"


def test_verify_measures_what_the_card_says_and_finds_a_false_card(own_zoo):
    verdict = verify_model(own_zoo.card.id)
    assert verdict.ok
    assert verdict.measured.acc == pytest.approx(own_zoo.card.acc, abs=0.005)
    Zoo().save(own_zoo.net, replace(own_zoo.card, acc=own_zoo.card.acc - 0.1))
    assert not verify_model(own_zoo.card.id).ok
