"""Training a classifier by a recipe."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from npd_core.attacks import DYNAMIC, made
from npd_core.attacks.input_aware import make_input_aware
from npd_core.attacks.poison import PoisonedSet
from npd_core.attacks.wanet import wanet
from npd_core.data.load import ImageSet
from npd_core.data.spec import DATASETS, get_dataset
from npd_core.errors import CheckpointError, ConfigError, StorageError
from npd_core.events import EpochEnd, Finished, Started, StepEnd
from npd_core.models import MODELS, build_model
from npd_core.training.augment import augment, cut_out, overlaid
from npd_core.training.schedules import one_cycle
from npd_core.zoo import classifier
from npd_core.zoo.classifier import InLoop, train_classifier
from npd_core.zoo.recipe import Recipe, default_recipe


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
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        list(
            train_classifier(fresh(), small_set(), short, torch.device("cpu"), path, in_loop=in_loop("wanet"))
        )
    relabeled = small_set()
    relabeled.labels[0] = 1 - relabeled.labels[0]
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        list(train_classifier(fresh(), relabeled, short, torch.device("cpu"), path))


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
    with pytest.raises(CheckpointError, match=r"a\.pt") as caught:
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
    with pytest.raises(StorageError, match=r"a\.pt"):
        list(train_classifier(fresh(), small_set(), SMALL, torch.device("cpu"), path))
    assert [found.name for found in tmp_path.iterdir()] == ["a.pt"]
    assert torch.load(path, weights_only=True)["epochs"] == 1


def test_what_the_network_is_shown_is_poisoned_before_it_is_augmented(monkeypatch):
    shown = []

    def spy(images, pad, flip, generator):
        shown.append(images.clone())
        return images

    monkeypatch.setattr(classifier, "augment", spy)
    warp = in_loop("wanet")
    data = small_set()
    gray = PoisonedSet(torch.full_like(data.images, 100), data.labels, data.poisoned)
    gray.images[:, :, :8] = 200
    short = replace(SMALL, epochs=1)
    list(train_classifier(fresh(), gray, short, torch.device("cpu"), in_loop=warp))
    unlike = [(x - gray.images[:1].float() / 255).abs().flatten(1).amax(1) > 1e-4 for x in shown]
    assert [changed.tolist() for changed in unlike] == [[True] * 12 + [False] * 4] * 4


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    list(train_classifier(fresh(), small_set(), replace(SMALL, epochs=1), torch.device("cpu"), path))
    with pytest.raises(CheckpointError, match=r"a\.pt"):
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
    with pytest.raises(CheckpointError, match=r"b\.pt"):
        list(train_classifier(fresh(), small_set(), replace(growing, growing=()), torch.device("cpu"), path))


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"8 .*16"):
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


def test_overlay_is_a_bounded_blend_with_the_neighbor():
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
