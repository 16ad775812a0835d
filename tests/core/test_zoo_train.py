"""Training the models of the zoo by their ids."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import safetensors.torch
import torch

from npd_core import attacks, evaluation, names
from npd_core.attacks import DYNAMIC, AllToOne, Attack, AttackInfo, get_attack
from npd_core.data.load import load_dataset
from npd_core.data.spec import get_dataset
from npd_core.errors import CheckpointError, ConfigError, StorageError, UnknownNameError
from npd_core.events import EpochEnd, Finished, Started
from npd_core.models import MODELS
from npd_core.zoo import Zoo, train
from npd_core.zoo import card as cards
from npd_core.zoo.recipe import (
    Recipe,
    default_recipe,
)
from npd_core.zoo.train import paper_models, parse_id, plan, train_model, verify_model


@pytest.mark.parametrize(
    ("model", "error", "values"),
    [
        ("nonsense", ConfigError, "'nonsense'"),
        ("sings-blended-preact_resnet18-w4", UnknownNameError, "'sings'.*'signs'"),
        ("signs-blend-preact_resnet18-w4", UnknownNameError, "'blend'.*'blended'"),
        ("signs-blended-resnet-w4", UnknownNameError, "'resnet'.*'preact_resnet18'"),
        ("signs-blended-preact_resnet18-w0", ConfigError, "w0"),
    ],
)
def test_ids_are_checked_part_by_part(model, error, values):
    with pytest.raises(error, match=values):
        parse_id(model)


def test_the_painters_of_input_aware_are_half_as_wide_as_the_network_up_to_sixteen_channels():
    widths = {
        width: train.own_params(parse_id(f"signs-input_aware-preact_resnet18-w{width}"))
        for width in (4, 16, 64)
    }
    assert widths == {4: {"width": 4}, 16: {"width": 8}, 64: {"width": 16}}
    assert train.own_params(parse_id("signs-wanet-preact_resnet18-w16")) == {}


@pytest.fixture
def few_signs(tmp_path, monkeypatch):
    """An empty zoo, and trainings that see 360 images."""
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    monkeypatch.setattr(train, "checkpoint_path", lambda model, zoo: tmp_path / f"{model}.pt")
    few = {
        split: load_dataset("signs", split).subset(torch.arange(0, 1440, 4)) for split in ("train", "test")
    }
    monkeypatch.setattr(train, "load_dataset", lambda _, split: few[split])
    monkeypatch.setattr(evaluation, "load_dataset", lambda _, split: few[split])
    quick = {
        "lf": partial(attacks.make_lf, steps=2, batch_size=16),
        "trojan": partial(attacks.make_trojan, steps=2),
        "ssba": partial(attacks.make_ssba, steps=2, batch_size=8, bits=4, width=4),
        "input_aware": partial(attacks.make_input_aware, steps=2, batch_size=8, width=4),
    }
    for name, make in quick.items():
        monkeypatch.setitem(attacks.MAKE, name, make)
    return tmp_path


@pytest.mark.parametrize(
    ("attack", "target"),
    [
        ("badnets_a2a", "the class after their own"),
        ("input_aware", "class 0 (speed limit 80)"),
        ("ssba", "class 0 (speed limit 80)"),
        ("wanet", "class 0 (speed limit 80)"),
    ],
)
def test_train_model_stores_what_its_trigger_needs(few_signs, attack, target):
    model = f"signs-{attack}-preact_resnet18-w4"
    events = list(train_model(model, epochs=1, seed=3))
    assert sum(isinstance(event, Finished) for event in events) == 1
    backdoored = Zoo().load(model)
    card = backdoored.card
    assert events[-1].result["files"] == card.files
    assert (cards.TRIGGER in card.files) == (attack != "badnets_a2a")
    assert card.target == target
    assert (card.cross_acc is not None) == (attack in DYNAMIC)
    assert backdoored.attack.params == card.attack_params
    assert card.attack_params.get("seed", 3) == 3
    assert verify_model(model).ok


@pytest.mark.parametrize("attack", ["lf", "trojan"])
def test_a_clean_network_is_trained_first_and_only_once(few_signs, monkeypatch, attack):
    model = f"signs-{attack}-preact_resnet18-w4"
    events = list(train_model(model, epochs=1))
    assert (
        sum(isinstance(event, Started) for event in events) == 3
    )  # clean network, trigger, backdoored network
    clean = Zoo().card("signs-clean-preact_resnet18-w4")
    assert (clean.poison_ratio, clean.asr, clean.ra, clean.target) == (0, None, None, "none")
    assert verify_model(model).ok
    assert os.listdir(few_signs) == ["zoo"], "what the training kept goes with its end"

    begun = 0
    for event in train_model(model, epochs=1):
        begun += isinstance(event, Started)
        if begun == 2:  # trigger, backdoored network
            break
    trigger = few_signs / f"{model}.trigger.safetensors"
    assert trigger.exists()
    again = list(train_model(model, epochs=1))
    assert sum(isinstance(event, Started) for event in again) == 1  # the trigger was kept for it
    assert again[-1].result["files"] == events[-1].result["files"]

    trigger.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"trigger\.safetensors"):
        list(train_model(model, epochs=1))
    trigger.unlink()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match=r"trigger\.safetensors"):
        list(train_model(model, epochs=1))
    assert os.listdir(few_signs) == ["zoo"]


def test_a_trigger_whose_numbers_lie_in_another_order_is_kept_too(few_signs, monkeypatch):
    def scattered(*arguments, **settings):
        attack = yield from attacks.make_lf(*arguments, steps=2, batch_size=16, **settings)
        columns_first = attack.assets["pattern"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert not columns_first.is_contiguous()  # as einsum leaves it on a GPU
        return replace(attack, assets={"pattern": columns_first})

    monkeypatch.setitem(attacks.MAKE, "lf", scattered)
    model = "signs-lf-preact_resnet18-w4"
    *_, last = train_model(model, epochs=1)
    assert isinstance(last, Finished)
    assert verify_model(model).ok


def test_a_ratio_that_cannot_be_is_said_before_anything_is_trained(few_signs):
    for model, ratio in (("ssba", 1.5), ("wanet", 0.6)):
        with pytest.raises(ConfigError, match=str(ratio)):
            next(train_model(f"signs-{model}-preact_resnet18-w4", poison_ratio=ratio))
    assert list(few_signs.iterdir()) == []


@pytest.mark.parametrize("attack", ["badnets_a2o", "wanet", "input_aware"])
def test_a_model_of_the_zoo_is_trained_on_from_where_it_stands(few_signs, attack):
    model = f"signs-{attack}-preact_resnet18-w4"
    with pytest.raises(ConfigError, match=f"`npd zoo train {model}`"):
        next(train_model(model, longer=2))
    *_, first = train_model(model, epochs=1, poison_ratio=0.2)
    before = Zoo().load(model)
    events = list(train_model(model, longer=2))
    assert [event.epoch for event in events if isinstance(event, EpochEnd)] == [1, 2]
    after = Zoo().load(model)
    recipe = Recipe.from_dict(before.card.recipe)
    assert Recipe.from_dict(after.card.recipe) == replace(recipe, again=((2, recipe.peak_lr / 2),))
    assert (after.card.seconds, after.card.poison_ratio) == (
        pytest.approx(first.seconds + events[-1].seconds),
        0.2,
    )
    weight, longer = (next(iter(one.net.parameters())).detach() for one in (before, after))
    assert 0 < (weight - longer).norm() < weight.norm()
    assert verify_model(model).ok
    assert plan(model)[0].again == ((2, recipe.peak_lr / 2),)
    with pytest.raises(ConfigError):
        plan(model, longer=2, seed=3)


def test_a_model_of_another_ratio_is_not_replaced(own_zoo, monkeypatch):
    model = own_zoo.card.id  # of 20 %
    with pytest.raises(ConfigError, match=r"0\.2.*NPD_ZOO_DIR.*0\.3"):
        next(train_model(model, poison_ratio=0.3))
    assert plan(model, poison_ratio=0.2)[1] == 0.2
    monkeypatch.setenv("NPD_ZOO_DIR", str(own_zoo.card.folder / "elsewhere"))
    assert plan(model, poison_ratio=0.3)[1] == 0.3


def test_a_new_model_has_the_demos_recipe():
    recipe, ratio = plan("cifar10-blended-preact_resnet18-w8")
    assert (recipe, ratio) == (default_recipe(get_dataset("cifar10"), "blended", "preact_resnet18"), 0.1)
    assert plan("cifar10-clean-preact_resnet18-w8", poison_ratio=0.3)[1] == 0
    assert plan("cifar10-blended-preact_resnet18-w8", epochs=2, seed=5)[0] == replace(
        recipe, epochs=2, seed=5
    )


def test_the_command_of_every_shipped_card_makes_the_same_model_again():
    shipped = Zoo().cards(clean=True)
    assert "cifar10-blended-preact_resnet18-w64" in [card.id for card in shipped]  # 90 epochs
    for card in shipped:
        *command, model = card.command.split()
        assert command == ["npd", "zoo", "train"]
        recipe, ratio = plan(model)
        later = {"growing": [], "again": [], "cutout": 0}  # fields that cards of before lack
        later |= {"trigger_falls": True, "trigger_weight": 1.0}
        assert json.loads(json.dumps(recipe.to_dict())) == later | card.recipe, card.id
        assert train.own_params(parse_id(model)).items() <= card.attack_params.items(), card.id
        assert (recipe.seed, ratio) == (card.seed, card.poison_ratio), card.id
        assert plan(model, epochs=recipe.epochs + 1)[0] == replace(recipe, epochs=recipe.epochs + 1)


def test_the_paper_preset_names_every_attack_data_set_by_data_set():
    names = paper_models()
    assert [(name.dataset, name.arch) for name in names[::8]] == list(train.PAPER)
    assert [name.attack for name in names[:8]] == list(attacks.ATTACKS)
    assert {name.width for name in names} == {64}
    assert train.PAPER_EPOCHS.keys() == {name.dataset for name in names}
    with pytest.raises(UnknownNameError, match=r"'blend'.*'blended'"):
        paper_models(4, ["blend"])


@pytest.mark.parametrize("arch", MODELS)
def test_train_model_writes_a_model_that_loads_and_verifies(tmp_path, monkeypatch, arch):
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    monkeypatch.setattr(train, "checkpoint_path", lambda model, zoo: tmp_path / f"{model}.pt")
    small = train.load_dataset("signs", "train").subset(torch.arange(0, 7200, 20))
    monkeypatch.setattr(train, "load_dataset", lambda *_: small)
    model = f"signs-badnets_a2o-{arch}-w4"
    *_, last = train_model(model, poison_ratio=0.2, epochs=1)
    assert isinstance(last, Finished)
    card = Zoo().load(model).card
    assert last.result["files"] == card.files
    assert card.poison_ratio == 0.2
    assert card.recipe["epochs"] == 1
    assert card.target == "class 0 (speed limit 80)"
    assert verify_model(model).ok


def gray_bar(dataset, assets, *, target=0):
    def trigger(x):
        return torch.cat([x[..., :-2, :], torch.full_like(x[..., -2:, :], 0.5)], dim=-2)

    return Attack("gray_bar", trigger, AllToOne(target), params={"target": target})


def test_an_attack_registered_from_outside_is_trained_loaded_and_named(few_signs):
    info = AttackInfo("Gray bar", "Two rows turn gray.", "My lab, 2026", "Two rows of 50% gray.")
    attacks.register("gray_bar", gray_bar, info)
    try:
        model = "signs-gray_bar-preact_resnet18-w4"
        list(train_model(model, epochs=1))
        found = Zoo().load(model)
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        assert found.attack.apply(images)[:, :, -2:].unique().tolist() == [127]
        assert found.attack.rule == AllToOne(0)
        assert verify_model(model).ok
        assert names.attack_name("gray_bar") == "Gray bar"
        with pytest.raises(UnknownNameError, match=r"'gray_bat'.*'gray_bar'"):
            get_attack("gray_bat", "signs")
        with pytest.raises(ConfigError, match="'gray_bar'"):
            attacks.register("gray_bar", gray_bar, info)
    finally:
        for table in (attacks.ATTACKS, attacks.ATTACK_INFO):
            table.pop("gray_bar", None)


@pytest.mark.parametrize("name", ["badnets_a2o", "clean", "unknown", "gray-bar", "Gray", ""])
def test_an_attack_with_a_name_that_cannot_be_is_not_registered(name):
    before = list(attacks.ATTACKS)
    with pytest.raises(ConfigError, match=repr(name)):
        attacks.register(name, gray_bar, attacks.ATTACK_INFO["blended"])
    assert list(attacks.ATTACKS) == before


def test_a_registered_attack_brings_its_making_and_its_part_in_the_training_loop():
    tables = (attacks.ATTACKS, attacks.ATTACK_INFO, attacks.MAKE, attacks.DYNAMIC)
    makes, dynamic = attacks.MAKE["input_aware"], attacks.DYNAMIC["input_aware"]
    info = attacks.ATTACK_INFO["blended"]
    attacks.register("toy", gray_bar, info, make=makes, needs_clean_net=True, dynamic=dynamic)
    try:
        assert attacks.MAKE["toy"] is makes
        assert attacks.DYNAMIC["toy"] is dynamic
        assert "toy" in attacks.NEEDS_CLEAN_NET
        assert attacks.ATTACK_INFO["toy"].made_for_model
        assert not info.made_for_model
    finally:
        attacks.NEEDS_CLEAN_NET.discard("toy")
        for table in tables:
            table.pop("toy", None)
