from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from npd_core import paths
from npd_core.data import load, parquet
from npd_core.data.load import ImageSet, availability, class_names, load_dataset, load_labels, load_rows
from npd_core.errors import DataMissingError, StorageError, UnknownNameError


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    return tmp_path


def coded(format: str, color: tuple[int, int, int], side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, format)
    return buffer.getvalue()


def write_parquet(path, labels, value=0, classes=("a", "b")):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{i}.png", coded("PNG", (value, i, 0), 32), label) for i, label in enumerate(labels)]
    return parquet.write_images(path, rows, classes)


def test_signs_are_always_there():
    data = load_dataset("signs", "test")
    assert data.images.shape == (1440, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.size == 1440
    assert availability("signs").available
    assert class_names("signs")[0] == "speed limit 80"


def test_remembered_while_the_file_stays_the_same(data_dir):
    file = write_parquet(data_dir / "cifar10" / "test.parquet", [1, 2], value=5)
    first = load_dataset("cifar10", "test")
    assert load_dataset("cifar10", "test").images.data_ptr() == first.images.data_ptr()
    write_parquet(file, [3, 4, 5], value=9)
    os.utime(file, ns=(1, 1))
    second = load_dataset("cifar10", "test")
    assert second.labels.tolist() == [3, 4, 5]
    assert int(second.images[0, 0, 0, 0]) == 9


def test_batches_are_float_in_unit_range_and_cover_everything():
    images = torch.arange(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    data = ImageSet(images, torch.arange(256))
    batches = list(data.batches(100))
    assert [x.shape[0] for x, _ in batches] == [100, 100, 56]
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[:, 0, 0, 0], torch.arange(256) / 255)
    assert torch.equal(y, data.labels)
    assert torch.equal(data.images, images)  # untouched


def test_subset_keeps_the_order_asked_for_and_copies():
    data = ImageSet(
        torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 1, 1).clone(), torch.arange(5)
    )
    for indices in ([4, 0], np.asarray([4, 0]), torch.tensor([4, 0])):
        part = data.subset(indices)
        assert part.labels.tolist() == [4, 0]
        part.images.zero_()
    assert int(data.images[4, 0, 0, 0]) == 4


def test_labels_and_rows_agree_with_the_whole():
    data = load_dataset("signs", "test")
    assert np.array_equal(load_labels("signs", "test"), data.labels.numpy())
    rows = np.asarray([700, 3, 1439])
    some = load_rows("signs", "test", rows)
    assert torch.equal(some.images, data.images[rows])
    assert torch.equal(some.labels, data.labels[rows])


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "tiny_imagenet"])
def test_absent_data_names_folder_and_remedy(data_dir, name):
    for split in ("train", "test"):
        with pytest.raises(DataMissingError) as caught:
            load_dataset(name, split)
        assert str(data_dir / name) in str(caught.value)
        assert f"{split}.parquet" in str(caught.value)
        assert f"npd data get {name}" in str(caught.value)
        assert "\n" not in str(caught.value)
    found = availability(name)
    assert not found.available
    assert found.splits == {}
    assert f"npd data get {name}" in found.reason
    assert "(train, test)" in found.reason
    assert "train.parquet and test.parquet" in found.reason


def test_relative_data_dir_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPD_DATA_DIR", "somewhere")
    assert str(tmp_path / "somewhere" / "cifar10") in availability("cifar10").reason


def test_a_part_of_the_data(data_dir):
    write_parquet(data_dir / "cifar10" / "test.parquet", [0, 1])
    found = availability("cifar10")
    assert not found.available
    assert list(found.splits) == ["test"]
    assert "(train)" in found.reason
    assert load_dataset("cifar10", "test").size == 2  # what is here can be used
    write_parquet(data_dir / "cifar10" / "train_5pct.parquet", [0, 1])
    assert availability("cifar10").available
    assert load.clean_split("cifar10") == "clean"
    write_parquet(data_dir / "cifar10" / "train.parquet", [0, 1, 2])
    assert load.clean_split("cifar10") == "train"


def test_signs_removed_by_accident(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "assets", lambda: tmp_path)
    with pytest.raises(DataMissingError, match=r"`python \S.*signs --out"):
        load_dataset("signs", "train")


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"'tiny-imagenet'.*'tiny_imagenet'"):
        load_dataset("tiny-imagenet", "test")
    with pytest.raises(UnknownNameError, match=r"'val'.*train, test"):
        load_dataset("signs", "val")
    with pytest.raises(UnknownNameError, match="'mnist'"):
        availability("mnist")


def test_damaged_file_is_named(data_dir):
    file = data_dir / "gtsrb" / "test.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1 and then nothing of use PAR1")
    assert availability("gtsrb").splits["test"] == str(file)  # nothing is read to say where it is
    with pytest.raises(StorageError, match=r"test\.parquet"):
        load_dataset("gtsrb", "test")


def test_class_names_of_tiny_imagenet(data_dir):
    assert class_names("tiny_imagenet")[7] == "class 7"
    names = tuple(f"thing {k}" for k in range(200))
    write_parquet(data_dir / "tiny_imagenet" / "test.parquet", [0], classes=names)
    assert class_names("tiny_imagenet") == names


def test_asking_what_is_here_imports_no_torch():
    code = (
        "import sys; from npd_core.data.load import availability, class_names;"
        "availability('signs'); availability('cifar10'); class_names('tiny_imagenet');"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, check=True, timeout=60)


# Copies as torchvision or the makers leave them, made small.


def make_cifar10(root, monkeypatch):
    """torchvision's folder with two images a batch; its checksums are replaced by those of the made files."""
    from torchvision.datasets import CIFAR10

    folder = root / "torchvision" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(i):
        pixels = np.zeros((2, 3, 32, 32), np.uint8)
        pixels[0, 0], pixels[1, 2] = 10 + i, 20 + i  # red, then blue
        return {"data": pixels.reshape(2, -1), "labels": [i, 9 - i]}

    lists = {"train_list": [f"data_batch_{i}" for i in range(1, 6)], "test_list": ["test_batch"]}
    for attribute, names in lists.items():
        monkeypatch.setattr(
            CIFAR10, attribute, [[name, write(name, batch(i))] for i, name in enumerate(names)]
        )
    meta = write("batches.meta", {"label_names": ["x"] * 10})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return folder


def test_cifar10_from_torchvisions_copy(data_dir, monkeypatch):
    folder = make_cifar10(data_dir, monkeypatch)
    assert availability("cifar10").splits == {"train": str(folder), "test": str(folder)}
    train = load_dataset("cifar10", "train")
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert train.images[2, :, 0, 0].tolist() == [11, 0, 0]
    assert train.images[3, :, 31, 31].tolist() == [0, 0, 21]
    assert load_dataset("cifar10", "test").size == 2
    assert torch.equal(load_rows("cifar10", "train", np.asarray([3])).images, train.images[3:4])


def test_parquet_comes_before_torchvisions_copy(data_dir, monkeypatch):
    make_cifar10(data_dir, monkeypatch)
    write_parquet(data_dir / "cifar10" / "test.parquet", [4, 4, 4])
    assert load_dataset("cifar10", "test").labels.tolist() == [4, 4, 4]


def test_tampered_copy_is_refused_before_it_is_unpickled(data_dir, monkeypatch):
    folder = make_cifar10(data_dir, monkeypatch)
    (folder / "data_batch_3").write_bytes(b"something else")
    with pytest.raises(StorageError, match=r"cifar-10-batches-py.*`npd data get cifar10`"):
        load_dataset("cifar10", "train")


@pytest.mark.parametrize("zipped", [True, False])
def test_gtsrb_from_its_archives_and_from_torchvisions_folders(data_dir, zipped):
    base = data_dir / "torchvision" / "gtsrb"
    base.mkdir(parents=True)
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    table += "00000.ppm;40;40;1;1;9;9;14\n00001.ppm;40;40;1;1;9;9;3\n"
    test = {f"GTSRB/Final_Test/Images/0000{i}.ppm": coded("PPM", (0, 50 + i, 0)) for i in range(2)}
    if zipped:
        with zipfile.ZipFile(base / "GTSRB_Final_Training_Images.zip", "w") as archive:
            for k in (2, 0):
                archive.writestr(
                    f"GTSRB/Final_Training/Images/{k:05d}/00000_00000.ppm", coded("PPM", (k, 0, 9))
                )
                archive.writestr(f"GTSRB/Final_Training/Images/{k:05d}/GT-{k:05d}.csv", "Filename;Width\n")
        with zipfile.ZipFile(base / "GTSRB_Final_Test_Images.zip", "w") as archive:
            for name, data in test.items():
                archive.writestr(name, data)
        with zipfile.ZipFile(base / "GTSRB_Final_Test_GT.zip", "w") as archive:
            archive.writestr("GT-final_test.csv", table)
    else:
        for k in (2, 0):
            folder = base / "GTSRB" / "Training" / f"{k:05d}"
            folder.mkdir(parents=True)
            (folder / "00000_00000.ppm").write_bytes(coded("PPM", (k, 0, 9)))
        (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
        for name, data in test.items():
            (base / name).write_bytes(data)
        (base / "GT-final_test.csv").write_text(table)
    train, test_set = load_dataset("gtsrb", "train"), load_dataset("gtsrb", "test")
    assert train.labels.tolist() == [0, 2]
    assert train.images.shape == (2, 3, 32, 32)
    assert train.images[1, :, 7, 7].tolist() == [2, 0, 9]
    assert test_set.labels.tolist() == [14, 3]
    assert test_set.images[:, 1, 0, 0].tolist() == [50, 51]
    assert availability("gtsrb").available


def tiny_files():
    wnids = [f"n{90000000 - 7 * k}" for k in range(200)]  # listed in another order than the labels'
    yield "wnids.txt", "\n".join(wnids).encode()
    yield "words.txt", "\n".join(f"{w}\tthing {i}, also called {i}" for i, w in enumerate(wnids)).encode()
    for i, wnid in ((0, wnids[0]), (199, wnids[199])):
        yield f"train/{wnid}/images/{wnid}_0.JPEG", coded("JPEG", (i, i, i), 64)
        yield f"train/{wnid}/{wnid}_boxes.txt", b""
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for i, wnid in enumerate((wnids[5], wnids[198]))]
    yield "val/val_annotations.txt", "".join(rows).encode()
    for i in range(2):
        yield f"val/images/val_{i}.JPEG", coded("JPEG", (90, 90, 90), 64)


@pytest.mark.parametrize("zipped", [True, False])
def test_tiny_imagenet_from_its_archive_and_from_its_folder(data_dir, zipped):
    root = data_dir / "torchvision"
    root.mkdir()
    if zipped:
        with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
            for name, data in tiny_files():
                archive.writestr(f"tiny-imagenet-200/{name}", data)
    else:
        for name, data in tiny_files():
            (root / "tiny-imagenet-200" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "tiny-imagenet-200" / name).write_bytes(data)
    train, test = load_dataset("tiny_imagenet", "train"), load_dataset("tiny_imagenet", "test")
    assert train.labels.tolist() == [0, 199]  # labels are the sorted wnids' order
    assert train.images[:, 0, 30, 30].tolist() == [199, 0]
    assert test.labels.tolist() == [194, 1]
    assert test.images.shape == (2, 3, 64, 64)
    assert class_names("tiny_imagenet")[199] == "thing 0"
    assert load_labels("tiny_imagenet", "train").tolist() == [0, 199]
    rows = load_rows("tiny_imagenet", "train", np.asarray([1, 0]))
    assert rows.labels.tolist() == [199, 0]
    assert torch.equal(rows.images, train.images.flip(0))


def test_labels_and_rows_of_an_archive_leave_other_images_alone(data_dir):
    (data_dir / "torchvision").mkdir()
    with zipfile.ZipFile(data_dir / "torchvision" / "tiny-imagenet-200.zip", "w") as archive:
        for name, data in tiny_files():
            damaged = name.startswith("train") and "0000_" in name
            archive.writestr(f"tiny-imagenet-200/{name}", b"no image" if damaged else data)
    assert load_labels("tiny_imagenet", "train").tolist() == [0, 199]
    assert load_rows("tiny_imagenet", "train", np.asarray([0])).labels.tolist() == [0]
    with pytest.raises(StorageError, match="row 1"):
        load_rows("tiny_imagenet", "train", np.asarray([1]))


def test_archive_that_is_damaged(data_dir):
    (data_dir / "torchvision").mkdir()
    (data_dir / "torchvision" / "tiny-imagenet-200.zip").write_bytes(b"no zip")
    with pytest.raises(StorageError, match=r"tiny-imagenet-200\.zip.*`npd data get tiny_imagenet`"):
        load_dataset("tiny_imagenet", "test")


def test_archive_without_images(data_dir):
    base = data_dir / "torchvision" / "gtsrb"
    base.mkdir(parents=True)
    with zipfile.ZipFile(base / "GTSRB_Final_Training_Images.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(StorageError, match=r"GTSRB_Final_Training_Images\.zip.*`npd data get gtsrb`"):
        load_dataset("gtsrb", "train")


# The real files.


@pytest.mark.parametrize(
    ("name", "count", "size", "first"),
    [
        ("cifar10", 10000, 32, "airplane"),
        ("gtsrb", 12630, 32, "speed limit 20"),
        ("tiny_imagenet", 10000, 64, "goldfish"),
    ],
)
def test_real_test_splits(real_data, name, count, size, first):
    labels = load_labels(name, "test")
    assert labels.shape == (count,)
    assert class_names(name)[0] == first
    assert len(np.unique(labels)) == len(class_names(name))
    rows = np.arange(0, count, 20)
    data = load_rows(name, "test", rows)
    assert data.images.shape == (len(rows), 3, size, size)
    assert np.array_equal(data.labels.numpy(), labels[rows])
    assert 60 < data.images.float().mean() < 140  # photographs, not noise or black frames
    assert availability(name).available


@pytest.mark.parametrize(("name", "count"), [("cifar10", 50000), ("gtsrb", 39209)])
def test_real_training_labels(real_data, name, count):
    labels = load_labels(name, "train")
    assert len(labels) == count
    if name == "cifar10":
        assert np.bincount(labels).tolist() == [5000] * 10


def test_real_mean_is_the_published_one(real_data):
    some = load_rows("cifar10", "train", np.arange(0, 50000, 25))
    mean = some.images.float().mean(dim=(0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(load.get_dataset("cifar10").mean, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "count", "size"),
    [("cifar10", "train", 50000, 32), ("gtsrb", "train", 39209, 32), ("tiny_imagenet", "test", 10000, 64)],
)
def test_real_splits_whole(real_data, name, split, count, size):
    data = load_dataset(name, split)
    assert data.images.shape == (count, 3, size, size)
    assert np.array_equal(data.labels.numpy(), load_labels(name, split))
