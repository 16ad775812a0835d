from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from npd_core.data import load
from npd_core.data.clean import clean_counts, clean_indices, hold_out, load_clean
from npd_core.data.load import FILES, ImageSet, load_dataset
from npd_core.data.parquet import write_images
from npd_core.data.spec import DATASETS, get_dataset
from npd_core.errors import ConfigError, DataMissingError


def balanced(num_classes: int, each: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.repeat(np.arange(num_classes), each))


def coded(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "each", "total"), [("cifar10", 250, 2500), ("gtsrb", 45, 1935), ("tiny_imagenet", 25, 5000)]
)
def test_five_percent_of_the_papers_data_sets(name, each, total):
    spec = DATASETS[name]
    counts = clean_counts(spec.train_images, spec.num_classes, 0.05)
    assert set(counts.tolist()) == {each}
    assert counts.sum() == total


@pytest.mark.parametrize("n", [500, 250, 50])
def test_counts_of_table_6(n):
    assert clean_counts(50000, 10, n).tolist() == [n // 10] * 10


def test_remainder_goes_to_the_first_classes():
    assert clean_counts(100, 3, 8).tolist() == [3, 3, 2]
    assert clean_counts(100, 12, 5).tolist() == [1] * 5 + [0] * 7


def test_share_in_floating_point_does_not_lose_an_image():
    assert clean_counts(1000, 10, 0.29).tolist() == [29] * 10  # 0.29 * 100 is 28.999999999999996
    assert clean_counts(100, 10, 1.0).tolist() == [10] * 10


@pytest.mark.parametrize("amount", [0.1, 37])
def test_subset_is_balanced_unique_and_true(amount):
    labels = balanced(10, 40)
    indices = clean_indices(labels, 10, amount, seed=0)
    counts = np.bincount(labels[indices], minlength=10)
    assert counts.tolist() == ([4] * 10 if amount == 0.1 else [4] * 7 + [3] * 3)
    assert len(set(indices.tolist())) == len(indices)


def test_seed_decides_and_nothing_else():
    labels = balanced(10, 40)
    first = clean_indices(labels, 10, 100, seed=3)
    np.random.seed(1)  # noqa: NPY002 the global generator must not matter
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert np.array_equal(first, clean_indices(labels, 10, 100, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    assert not np.array_equal(first, clean_indices(labels, 10, 100, seed=4))


def test_small_classes_give_all_they_have():
    labels = np.repeat([0, 1, 2], [100, 2, 98])
    share = clean_indices(labels, 3, 0.3, seed=0)  # 20 for each class
    assert np.bincount(labels[share]).tolist() == [20, 2, 20]
    count = clean_indices(labels, 3, 30, seed=0)  # the others make up for it: exactly 30
    assert np.bincount(labels[count]).tolist() == [14, 2, 14]
    assert len(clean_indices(labels, 3, 200, seed=0)) == 200


def test_every_image_when_all_are_asked_for():
    labels = balanced(5, 8)
    assert clean_indices(labels, 5, 40, seed=0).tolist() == list(range(40))
    assert len(clean_indices(labels, 5, 1.0, seed=0)) == 40


@pytest.mark.parametrize(
    ("amount", "values"),
    [
        (401, "401.*400"),
        (0, "0"),
        (-5, "-5"),
        (0.0, r"0\.0"),
        (1.5, r"1\.5"),
        (-0.1, r"-0\.1"),
        (0.001, r"0\.001.*400"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        ("many", "'many'"),
    ],
)
def test_amounts_that_make_no_sense(amount, values):
    with pytest.raises(ConfigError, match=values):
        clean_indices(balanced(10, 40), 10, amount, seed=0)


def test_more_than_are_here_though_fewer_than_the_data_set_has():
    with pytest.raises(ConfigError, match=r"401.*400"):
        clean_indices(balanced(10, 40), 10, 401, seed=0, of=8000)


def check_against_decoded(name, amount, seed):
    data = load_dataset(name, "train")
    indices = clean_indices(data.labels.numpy(), get_dataset(name).num_classes, amount, seed)
    clean = load_clean(name, amount, seed)
    assert clean.indices.tolist() == indices.tolist()
    assert torch.equal(clean.labels, data.labels[clean.indices])
    assert torch.equal(clean.images, data.images[clean.indices])


@pytest.mark.parametrize("amount", [0.05, 100])
def test_by_name_is_the_same_as_from_the_decoded_data(amount):
    for seed in (0, 7):
        check_against_decoded("signs", amount, seed)


@pytest.mark.slow
def test_by_name_is_the_same_as_from_the_decoded_data_of_cifar10(real_data):
    for seed in (0, 7):
        check_against_decoded("cifar10", 0.05, seed)


def test_only_the_chosen_images_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    labels = balanced(10, 300)
    chosen = set(clean_indices(labels, 10, 20, seed=3).tolist())
    image = coded((9, 0, 0))
    rows = [(f"{i}", image if i in chosen else b"no image", label) for i, label in enumerate(labels.tolist())]
    write_images(tmp_path / "cifar10" / FILES["train"], rows, "0123456789")
    clean = load_clean("cifar10", 20, 3)
    assert set(clean.indices.tolist()) == chosen
    assert (clean.images[:, 0] == 9).all()
    assert torch.equal(clean.labels, torch.from_numpy(labels)[clean.indices])


def test_disjoint_from_the_test_set():
    clean = {image.tobytes() for image in load_clean("signs", 0.05, 0).images.numpy()}
    assert len(clean) == 360
    assert not clean & {image.tobytes() for image in load_dataset("signs", "test").images.numpy()}


def test_cifar10(real_data):
    clean = load_clean("cifar10", 0.05, 0)
    assert clean.images.shape == (2500, 3, 32, 32)
    assert torch.bincount(clean.labels).tolist() == [250] * 10


def test_gtsrb(real_data):
    assert torch.bincount(load_clean("gtsrb", 0.05, 0).labels).tolist() == [45] * 43


def test_tiny_imagenet_from_the_part_that_came_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    (tmp_path / "tiny_imagenet").mkdir()
    images = [coded((k, 0, 0)) for k in range(200)]
    labels = balanced(200, 25).tolist()
    rows = ((f"{i}.png", images[label], label) for i, label in enumerate(labels))
    names = [f"thing {k}" for k in range(200)]
    write_images(tmp_path / "tiny_imagenet" / FILES["clean"], rows, names)
    clean = load_clean("tiny_imagenet", 0.05, 0)  # 5% of 100,000, which is the whole part
    assert torch.bincount(clean.labels).tolist() == [25] * 200
    assert clean.indices.tolist() == list(range(5000))
    few = load_clean("tiny_imagenet", 400, 0)
    assert torch.bincount(few.labels).tolist() == [2] * 200
    assert few.images[:, 0, 5, 5].tolist() == few.labels.tolist()
    assert torch.equal(few.images, load_dataset("tiny_imagenet", "clean").images[few.indices])


def test_tiny_imagenet(real_data):
    clean = load_clean("tiny_imagenet", 0.05, 0)
    assert clean.images.shape == (5000, 3, 64, 64)
    assert torch.bincount(clean.labels).tolist() == [25] * 200


def test_a_share_is_of_the_full_training_set_where_only_a_part_of_it_is_here(monkeypatch):
    labels = np.repeat(np.arange(43), 620)  # 26,660 of GTSRB's 39,209, as torchvision has it
    monkeypatch.setattr(load, "clean_split", lambda name: "train")
    monkeypatch.setattr(load, "load_labels", lambda name, split: labels)
    monkeypatch.setattr(load, "load_rows", lambda name, split, rows: (rows, torch.from_numpy(labels[rows])))
    assert torch.bincount(load_clean("gtsrb", 0.05, 0).labels).tolist() == [45] * 43


def test_absent_data(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    with pytest.raises(DataMissingError, match=r"\(train\).*npd data get cifar10"):
        load_clean("cifar10", 0.05, 0)


def test_a_share_of_which_only_a_part_is_here_is_refused():
    assert len(clean_indices(balanced(10, 40), 10, 0.05, seed=0, of=8000)) == 400
    with pytest.raises(ConfigError, match=r"0\.1 .*8000.*400.*0\.05\b"):
        clean_indices(balanced(10, 40), 10, 0.1, seed=0, of=8000)


def test_holding_out_takes_its_share_of_every_class():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [3])
    data = ImageSet(torch.arange(33, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2), labels)
    rest, taken = hold_out(data, 0.2, seed=0)
    assert taken.labels.bincount(minlength=4).tolist() == [4, 2, 1, 0]
    numbers = torch.cat([rest.images[:, 0, 0, 0], taken.images[:, 0, 0, 0]])
    assert sorted(numbers.tolist()) == list(range(33))
    for part in (rest, taken):
        assert torch.equal(part.labels, labels[part.images[:, 0, 0, 0].long()])
    assert not torch.equal(hold_out(data, 0.2, seed=1)[1].images, taken.images)


def test_a_share_of_nothing_takes_nothing():
    data = ImageSet(torch.zeros(6, 3, 2, 2, dtype=torch.uint8), torch.arange(6) % 2)
    rest, taken = hold_out(data, 0.0, seed=0)
    assert taken.size == 0
    assert torch.equal(rest.images, data.images)
