"""Cards, weights and the attacker's training."""

import itertools
import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from npd_core import attacks, evaluation
from npd_core.attacks import DYNAMIC, get_attack, made
from npd_core.attacks.input_aware import make_input_aware
from npd_core.attacks.poison import PoisonedSet
from npd_core.attacks.wanet import wanet
from npd_core.data.load import ImageSet, load_dataset
from npd_core.data.spec import DATASETS, get_dataset
from npd_core.errors import CheckpointError, ConfigError, StorageError, UnknownNameError
from npd_core.events import EpochEnd, Finished, Started, StepEnd
from npd_core.models import MODELS, build_model
from npd_core.zoo import card as cards
from npd_core.zoo import train, weights
from npd_core.zoo.card import get_card, list_cards, unreadable_cards
from npd_core.zoo.recipe import (
    InLoop,
    Recipe,
    augment,
    cut_out,
    default_recipe,
    one_cycle,
    overlaid,
    train_classifier,
)
from npd_core.zoo.train import paper_models, parse_id, plan, train_model, verify_model
from npd_core.zoo.weights import eight_bits, half_precision, load_backdoored, restored, save_backdoored


@pytest.fixture
def own_zoo(tiny_zoo, tmp_path, monkeypatch):
    """A copy of the tiny zoo that a test may damage."""
    backdoored = load_backdoored(tiny_zoo)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    save_backdoored(backdoored.net, backdoored.card)
    return backdoored


def test_round_trip_keeps_the_stored_precision(own_zoo):
    again = load_backdoored(own_zoo.card.id)
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
    with pytest.raises(CheckpointError, match=f"sha256 .* its card says .*npd zoo train {own_zoo.card.id}"):
        load_backdoored(own_zoo.card.id)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_backdoored(own_zoo.card.id)


def test_weights_of_another_width_are_refused_even_when_the_hash_fits(own_zoo):
    wrong = build_model("preact_resnet18", 12, 8)
    card = save_backdoored(wrong, own_zoo.card)
    with pytest.raises(CheckpointError, match="does not fit preact_resnet18"):
        load_backdoored(card.id)


def test_damaged_and_misplaced_cards_are_refused(own_zoo):
    path = own_zoo.card.folder / cards.CARD
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"id": "other"}))
    with pytest.raises(CheckpointError, match="Rename the folder"):
        get_card(own_zoo.card.id)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="not a readable model card"):
        get_card(own_zoo.card.id)


def test_a_damaged_card_hides_no_other(own_zoo):
    other = own_zoo.card.folder.with_name("signs-damaged")
    other.mkdir()
    (other / cards.CARD).write_text('{"id": "signs-dam')
    assert list_cards() == [own_zoo.card]
    (sentence,) = unreadable_cards()
    assert sentence.startswith(f"{other / cards.CARD}: not a readable model card")
    assert "remove its folder" in sentence
    with pytest.raises(CheckpointError, match="not a readable model card"):
        get_card("signs-damaged")


def test_unknown_model_names_the_nearest(tiny_zoo):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{tiny_zoo}'"):
        get_card(tiny_zoo[:-1])


def test_a_full_disk_leaves_the_old_model_whole(own_zoo, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        save_backdoored(own_zoo.net, own_zoo.card)
    load_backdoored(own_zoo.card.id)
    assert [p.name for p in own_zoo.card.folder.parent.iterdir()] == [own_zoo.card.id]


def test_a_folder_that_cannot_be_moved_leaves_the_old_model_whole(own_zoo, monkeypatch):
    real = os.replace

    def stuck(source, target):
        if str(source).endswith(".partial"):
            raise OSError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(weights.os, "replace", stuck)
    with pytest.raises(StorageError, match="Permission denied"):
        save_backdoored(own_zoo.net, own_zoo.card)
    load_backdoored(own_zoo.card.id)
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

    card = save_backdoored(net, own_zoo.card, stored=stored)
    loaded = load_backdoored(card.id).net
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
    assert get_card(own_zoo.card.id).cross_acc is None


@pytest.fixture
def own_wanet(own_zoo):
    """The tiny network, untrained for it, under the name of a WaNet model with a field of its own."""
    attack = get_attack("wanet", "signs", seed=5)
    card = replace(
        own_zoo.card, id="signs-wanet-preact_resnet18-w4", attack="wanet", attack_params=attack.params
    )
    return attack, save_backdoored(own_zoo.net, card, attack.assets)


def test_what_a_trigger_is_made_of_comes_back_with_the_model(own_wanet):
    attack, card = own_wanet
    assert set(card.files) == {cards.WEIGHTS, cards.TRIGGER}
    loaded = load_backdoored(card.id).attack
    assert torch.equal(loaded.assets["field"], attack.assets["field"])
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.apply(images), attack.apply(images))


def test_a_changed_missing_or_unfitting_trigger_is_refused(own_zoo, own_wanet):
    _, card = own_wanet
    path = card.folder / cards.TRIGGER
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"trigger\.safetensors: sha256"):
        load_backdoored(card.id)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_backdoored(card.id)
    save_backdoored(own_zoo.net, card, {"field": torch.zeros(2, 9, 9)})
    with pytest.raises(CheckpointError, match=f"trigger cannot be built .*npd zoo train {card.id}"):
        load_backdoored(card.id)


def test_a_clean_network_loads_but_is_not_listed_among_the_backdoored(own_zoo):
    card = replace(
        own_zoo.card, id="signs-clean-preact_resnet18-w4", attack="clean", attack_params={}, asr=None, ra=None
    )
    save_backdoored(own_zoo.net, card)
    assert load_backdoored(card.id).attack.name == "clean"
    assert [c.id for c in list_cards()] == [own_zoo.card.id]
    assert [c.id for c in list_cards(clean=True)] == [own_zoo.card.id, card.id]
    assert verify_model(card.id).ok
    assert parse_id(card.id).attack == "clean"


def test_verify_measures_what_the_card_says_and_finds_a_false_card(own_zoo):
    verdict = verify_model(own_zoo.card.id)
    assert verdict.ok
    assert verdict.measured.acc == pytest.approx(own_zoo.card.acc, abs=0.005)
    save_backdoored(own_zoo.net, replace(own_zoo.card, acc=own_zoo.card.acc - 0.1))
    assert not verify_model(own_zoo.card.id).ok


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("nonsense", ConfigError, "is not a model id"),
        ("sings-blended-preact_resnet18-w4", UnknownNameError, "Did you mean 'signs'"),
        ("signs-blend-preact_resnet18-w4", UnknownNameError, "Did you mean 'blended'"),
        ("signs-blended-resnet-w4", UnknownNameError, "Unknown architecture"),
        ("signs-blended-preact_resnet18-w0", ConfigError, "is not a model id"),
    ],
)
def test_ids_are_checked_part_by_part(model, error, says):
    with pytest.raises(error, match=says):
        parse_id(model)


# the attacker's training


def small_set(count=64):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (count,))
    images = torch.randint(0, 120, (count, 3, 16, 16), dtype=torch.uint8)
    images[torch.arange(count), labels] += 100
    return PoisonedSet(images, labels, torch.zeros(count, dtype=torch.bool))


SMALL = Recipe(epochs=3, batch_size=16, peak_lr=0.1, pad=1)


def fresh():
    torch.manual_seed(0)
    return build_model("preact_resnet18", 3, 4)


def test_training_learns_and_an_interrupted_one_goes_on_to_the_same_weights(tmp_path):
    whole, path = fresh(), tmp_path / "a.pt"
    events = list(train_classifier(whole, small_set(), SMALL, torch.device("cpu"), tmp_path / "b.pt"))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    epochs = [e for e in events if isinstance(e, EpochEnd)]
    assert len(epochs) == 3
    assert epochs[-1].losses["total"] < epochs[0].losses["total"]

    for event in train_classifier(fresh(), small_set(), SMALL, torch.device("cpu"), path):
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (1, 1):
            break
    resumed = fresh()
    later = list(train_classifier(resumed, small_set(), SMALL, torch.device("cpu"), path))
    assert [e.epoch for e in later if isinstance(e, EpochEnd)] == [1, 2]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[name])


def test_a_further_cycle_is_the_training_of_the_first_one_and_then_another(tmp_path):
    cpu, seen = torch.device("cpu"), []
    both = replace(SMALL, growing=((0.5, 8),), again=((2, 0.05), (1, 0.01)))
    assert both.total == 6
    assert [both.cycle(epoch) for epoch in (0, 2, 3, 4, 5)] == [
        (0, 3, 0.1), (0, 3, 0.1), (3, 2, 0.05), (3, 2, 0.05), (5, 1, 0.01)
    ]  # fmt: skip
    assert [both.pixels(epoch) for epoch in range(6)] == [8, 8, None, None, None, None]
    assert Recipe.from_dict(json.loads(json.dumps(both.to_dict()))) == both

    whole, parts = fresh(), fresh()
    events = list(train_classifier(whole, small_set(), both, cpu))
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == list(range(6))
    list(train_classifier(parts, small_set(), replace(both, again=()), cpu))
    for event in train_classifier(parts, small_set(), both, cpu, tmp_path / "a.pt", done=3):
        if isinstance(event, EpochEnd):
            seen.append(event.epoch)
            if event.epoch == 4:
                break
    parts = fresh()
    later = train_classifier(parts, small_set(), both, cpu, tmp_path / "a.pt", done=3)
    seen += [event.epoch for event in later if isinstance(event, EpochEnd)]
    assert seen == [3, 4, 5]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name])


def in_loop(name):
    """Poisoning inside the loop of images of 16 x 16 in 3 classes."""
    spec = replace(get_dataset("signs"), size=16, num_classes=3)
    data = ImageSet(*small_set()[:2])
    if name == "wanet":
        attack = wanet(spec, {}, target=1)
    else:
        attack = made(make_input_aware(spec, data, seed=0, target=1, width=4, steps=3, batch_size=8))
    return InLoop(DYNAMIC[name](attack, spec, torch.device("cpu")), attack.rule, 0.25)


@pytest.mark.parametrize("name", DYNAMIC)
def test_an_interrupted_training_with_a_dynamic_trigger_goes_on_to_the_same_weights(tmp_path, name):
    def train_it(net, trigger, path):
        return train_classifier(net, small_set(), SMALL, torch.device("cpu"), path, in_loop=trigger)

    whole, one = fresh(), in_loop(name)
    before = one.trigger.attack()
    assert isinstance(list(train_it(whole, one, tmp_path / "b.pt"))[-1], Finished)
    for event in train_it(fresh(), in_loop(name), tmp_path / "a.pt"):
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (1, 1):
            break
    resumed, other = fresh(), in_loop(name)
    later = list(train_it(resumed, other, tmp_path / "a.pt"))
    assert [e.epoch for e in later if isinstance(e, EpochEnd)] == [1, 2]
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[key])
    images = small_set().images
    assert torch.equal(one.trigger.attack().apply(images), other.trigger.attack().apply(images))
    learnt = not torch.equal(one.trigger.attack().apply(images), before.apply(images))
    assert learnt == (name == "input_aware")


@pytest.mark.parametrize("falls", [True, False])
def test_the_rate_of_a_trigger_that_learns_follows_the_classifiers_where_the_recipe_says_so(
    monkeypatch, falls
):
    recipe, inside, rates = replace(SMALL, epochs=2, trigger_falls=falls), in_loop("input_aware"), []
    monkeypatch.setattr(inside.trigger, "step", rates.append)
    list(train_classifier(fresh(), small_set(), recipe, torch.device("cpu"), in_loop=inside))
    steps = len(rates)
    falling = [one_cycle(step, steps, 1.0, recipe.warm_fraction) for step in range(steps)]
    assert rates == pytest.approx(falling if falls else [1.0] * steps)
    assert max(falling) == 1
    assert falling[-1] < 0.5


def test_a_checkpoint_that_was_poisoned_otherwise_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    short = replace(SMALL, epochs=1)
    list(train_classifier(fresh(), small_set(), short, torch.device("cpu"), path))
    with pytest.raises(CheckpointError, match="poisons in another way"):
        list(
            train_classifier(fresh(), small_set(), short, torch.device("cpu"), path, in_loop=in_loop("wanet"))
        )
    relabelled = small_set()
    relabelled.labels[0] = 1 - relabelled.labels[0]
    with pytest.raises(CheckpointError, match="poisons in another way"):
        list(train_classifier(fresh(), relabelled, short, torch.device("cpu"), path))


def one_epoch(path):
    return list(train_classifier(fresh(), small_set(), replace(SMALL, epochs=1), torch.device("cpu"), path))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "another network", "no state"])
def test_a_damaged_checkpoint_is_refused_with_the_remedy(tmp_path, damage):
    path = tmp_path / "a.pt"
    one_epoch(path)
    state = torch.load(path, weights_only=True)
    if damage == "another network":
        torch.save(state | {"net": build_model("preact_resnet18", 3, 6).state_dict()}, path)
    elif damage == "no state":
        torch.save([1, 2], path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"x" * 5000, "empty": b""}[damage])
    with pytest.raises(
        CheckpointError, match=r"a\.pt cannot be read \(.*\): delete it to start anew\.$"
    ) as caught:
        one_epoch(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed\nmore")]
)
def test_a_disk_full_at_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch, error):
    path, real, saved = tmp_path / "a.pt", torch.save, []

    def save(state, to):
        real(state, to)
        saved.append(state["epochs"])
        if len(saved) > 1:
            raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        StorageError, match=r"could not be written \((\[Errno 28.*|file write failed)\): make room"
    ):
        list(train_classifier(fresh(), small_set(), SMALL, torch.device("cpu"), path))
    assert [found.name for found in tmp_path.iterdir()] == ["a.pt"]
    assert torch.load(path, weights_only=True)["epochs"] == 1


def test_what_the_network_is_shown_is_poisoned_before_it_is_augmented(monkeypatch):
    shown = []

    def spy(images, pad, flip, generator):
        shown.append(images.clone())
        return images

    from npd_core.zoo import recipe

    monkeypatch.setattr(recipe, "augment", spy)
    warp = in_loop("wanet")
    data = small_set()
    grey = PoisonedSet(torch.full_like(data.images, 100), data.labels, data.poisoned)
    grey.images[:, :, :8] = 200
    short = replace(SMALL, epochs=1)
    list(train_classifier(fresh(), grey, short, torch.device("cpu"), in_loop=warp))
    unlike = [(x - grey.images[:1].float() / 255).abs().flatten(1).amax(1) > 1e-4 for x in shown]
    assert [changed.tolist() for changed in unlike] == [[True] * 12 + [False] * 4] * 4


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    list(train_classifier(fresh(), small_set(), replace(SMALL, epochs=1), torch.device("cpu"), path))
    with pytest.raises(CheckpointError, match="another recipe"):
        list(train_classifier(fresh(), small_set(), SMALL, torch.device("cpu"), path))


def test_a_checkpoint_of_before_pictures_grew_goes_on(tmp_path):
    path = tmp_path / "a.pt"
    one_epoch(path)
    state = torch.load(path, weights_only=True)
    recipe = json.loads(state["recipe"])
    del recipe["growing"]
    torch.save(state | {"recipe": json.dumps(recipe)}, path)
    assert len(one_epoch(path)) == 2


def test_pictures_grow_as_the_recipe_says_and_a_checkpoint_remembers_it(tmp_path):
    net, seen, path = fresh(), [], tmp_path / "b.pt"
    net.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[2:])))
    growing = replace(SMALL, epochs=4, growing=((0.25, 8), (0.75, 12)))
    events = list(train_classifier(net, small_set(), growing, torch.device("cpu"), path))
    steps = sum(isinstance(event, StepEnd) for event in events) // 4
    assert seen == [(8, 8)] * steps + [(12, 12)] * 2 * steps + [(16, 16)] * steps
    assert len(list(train_classifier(fresh(), small_set(), growing, torch.device("cpu"), path))) == 2, (
        "it goes on"
    )
    with pytest.raises(CheckpointError, match="another recipe"):
        list(train_classifier(fresh(), small_set(), replace(growing, growing=()), torch.device("cpu"), path))


def test_fewer_images_than_a_batch_is_said(tmp_path):
    with pytest.raises(ConfigError, match="fewer than one batch"):
        list(train_classifier(fresh(), small_set(8), SMALL, torch.device("cpu")))


def test_augmentation_crops_with_black_border_and_mirrors_some():
    images = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).expand(400, 3, -1, -1)
    out = augment(images, pad=1, flip=True, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    expected = {
        crop.flatten().numpy().tobytes()
        for top in range(3)
        for left in range(3)
        for crop in (
            padded[:, top : top + 4, left : left + 4],
            padded[:, top : top + 4, left : left + 4].flip(2),
        )
    }
    seen = {image.flatten().numpy().tobytes() for image in out}
    assert seen == expected
    plain = augment(images, pad=0, flip=False, generator=torch.Generator())
    assert torch.equal(plain, images)


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_blackens_one_square_an_image_wherever_it_may_lie(side):
    x = torch.ones(4000, 3, 6, 6)
    out = cut_out(x, side, torch.Generator().manual_seed(0))
    expected = set()
    for middle_y, middle_x in itertools.product(range(6), repeat=2):
        image = torch.ones(3, 6, 6)
        top, left = middle_y - side // 2, middle_x - side // 2
        image[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        expected.add(image.numpy().tobytes())
    assert {image.numpy().tobytes() for image in out} == expected
    assert torch.equal(x, torch.ones_like(x))


def test_overlay_is_a_bounded_blend_with_the_neighbour():
    x = torch.rand(500, 3, 4, 4)
    out = overlaid(x, 0.4, torch.Generator().manual_seed(0))
    difference = x.roll(1, 0) - x
    weight = ((out - x) * difference).sum((1, 2, 3)) / difference.square().sum((1, 2, 3))
    torch.testing.assert_close(out, torch.lerp(x, x.roll(1, 0), weight[:, None, None, None]))
    assert 0 <= weight.min() < 0.05
    assert 0.35 < weight.max() <= 0.4 + 1e-4


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    rates = [one_cycle(step, 100, 0.2, 0.25) for step in range(100)]
    assert max(rates) == pytest.approx(0.2)
    assert rates.index(max(rates)) in (24, 25)
    assert rates[0] < 0.01
    assert 0 < rates[-1] < 0.01


def test_default_recipes_follow_the_data_set():
    arch = "preact_resnet18"
    assert default_recipe(get_dataset("cifar10"), "badnets_a2o", arch).flip
    assert not default_recipe(get_dataset("signs"), "badnets_a2o", arch).flip
    overlays = {
        name: default_recipe(get_dataset(name), "blended", arch).overlay for name in ("signs", "cifar10")
    }
    assert overlays["signs"] > overlays["cifar10"] > 0
    assert default_recipe(get_dataset("signs"), "badnets_a2o", arch).overlay == 0
    assert default_recipe(get_dataset("signs"), "badnets_a2o", arch, epochs=1).epochs == 1
    assert default_recipe(get_dataset("cifar10"), "wanet", arch).cutout > 0
    assert default_recipe(get_dataset("cifar10"), "blended", arch).cutout == 0


def test_the_painters_of_input_aware_are_half_as_wide_as_the_network_up_to_sixteen_channels():
    widths = {
        width: train.own_params(parse_id(f"signs-input_aware-preact_resnet18-w{width}"))
        for width in (4, 16, 64)
    }
    assert widths == {4: {"width": 4}, 16: {"width": 8}, 64: {"width": 16}}
    assert train.own_params(parse_id("signs-wanet-preact_resnet18-w16")) == {}


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_architecture_takes_the_pictures_of_every_recipe(dataset, arch):
    spec = get_dataset(dataset)
    recipe = default_recipe(spec, "badnets_a2o", arch)
    net = build_model(arch, spec.num_classes, 2, spec.mean, spec.std).eval()
    sizes = {recipe.pixels(epoch) or spec.size for epoch in range(recipe.epochs)}
    assert spec.size in sizes
    for size in sizes:
        assert net(torch.zeros(1, 3, size, size)).shape == (1, spec.num_classes)


@pytest.fixture
def few_signs(tmp_path, monkeypatch):
    """An empty zoo, and trainings that see 360 images."""
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    monkeypatch.setattr(train, "checkpoint_path", lambda model: tmp_path / f"{model}.pt")
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
    backdoored = load_backdoored(model)
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
    clean = get_card("signs-clean-preact_resnet18-w4")
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
    with pytest.raises(
        CheckpointError, match=r"trigger\.safetensors cannot be read .*delete it to start anew"
    ):
        list(train_model(model, epochs=1))
    trigger.unlink()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_file", full)
    with pytest.raises(
        StorageError, match=r"trigger\.safetensors could not be written .*No space left.*make room"
    ):
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
    for model, ratio, says in (("ssba", 1.5, "must lie in"), ("wanet", 0.6, "up to 0.5")):
        with pytest.raises(ConfigError, match=says):
            next(train_model(f"signs-{model}-preact_resnet18-w4", poison_ratio=ratio))
    assert list(few_signs.iterdir()) == []


@pytest.mark.parametrize("attack", ["badnets_a2o", "wanet", "input_aware"])
def test_a_model_of_the_zoo_is_trained_on_from_where_it_stands(few_signs, attack):
    model = f"signs-{attack}-preact_resnet18-w4"
    with pytest.raises(ConfigError, match=f"Only a model of the zoo .* run `npd zoo train {model}` first"):
        next(train_model(model, longer=2))
    *_, first = train_model(model, epochs=1, poison_ratio=0.2)
    before = load_backdoored(model)
    events = list(train_model(model, longer=2))
    assert [event.epoch for event in events if isinstance(event, EpochEnd)] == [1, 2]
    after = load_backdoored(model)
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
    with pytest.raises(ConfigError, match="give neither"):
        plan(model, longer=2, seed=3)


def test_a_model_of_another_ratio_is_not_replaced(own_zoo, monkeypatch):
    model = own_zoo.card.id  # of 20 %
    with pytest.raises(
        ConfigError, match=r"at a poison ratio of 0\.2: set NPD_ZOO_DIR to .* for one at 0\.3, or remove"
    ):
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
    shipped = list_cards(clean=True)
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
    with pytest.raises(UnknownNameError, match="Did you mean 'blended'"):
        paper_models(4, ["blend"])


@pytest.mark.parametrize("arch", MODELS)
def test_train_model_writes_a_model_that_loads_and_verifies(tmp_path, monkeypatch, arch):
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    monkeypatch.setattr(train, "checkpoint_path", lambda model: tmp_path / f"{model}.pt")
    small = train.load_dataset("signs", "train").subset(torch.arange(0, 7200, 20))
    monkeypatch.setattr(train, "load_dataset", lambda *_: small)
    model = f"signs-badnets_a2o-{arch}-w4"
    *_, last = train_model(model, poison_ratio=0.2, epochs=1)
    assert isinstance(last, Finished)
    card = load_backdoored(model).card
    assert last.result["files"] == card.files
    assert card.poison_ratio == 0.2
    assert card.recipe["epochs"] == 1
    assert card.target == "class 0 (speed limit 80)"
    assert verify_model(model).ok
