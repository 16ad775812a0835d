from __future__ import annotations

import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npd_core import paths
from npd_core.data import parquet
from npd_core.data.load import load_dataset
from npd_core.data.spec import SIGNS_CLASSES
from npd_core.errors import ConfigError, StorageError
from scripts import draw_signs as signs

SHIPPED = paths.assets() / "signs"


def test_shipped_copy_is_small_balanced_and_named():
    assert sum(file.stat().st_size for file in SHIPPED.glob("*.parquet")) <= 12_000_000
    for split, each in (("train", 600), ("test", 120)):
        labels = parquet.read_labels(SHIPPED / f"{split}.parquet", 12)
        assert np.bincount(labels).tolist() == [each] * 12
        assert parquet.class_names(SHIPPED / f"{split}.parquet") == SIGNS_CLASSES


@pytest.mark.parametrize("split", signs.SPLITS)
def test_drawing_again_gives_the_shipped_images(split):
    shipped = load_dataset("signs", split)
    for index in (0, 1, 13, 100, 1439):
        coded, label = signs._coded(index, split, signs.SEED)
        again = np.asarray(Image.open(io.BytesIO(coded)), np.int16).transpose(2, 0, 1)
        difference = np.abs(again - shipped.images[index].numpy().astype(np.int16))
        assert label == int(shipped.labels[index]) == index % 12
        # another release of the drawing or JPEG library may round differently, but draws the same picture
        assert np.percentile(difference, 95) <= 6
        assert difference.mean() < 2


def test_an_image_depends_on_seed_split_and_index_alone():
    first, label = signs.sign("train", 7)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert label == 7
    assert np.array_equal(first, signs.sign("train", 7)[0])
    for split, index, seed in (("test", 7, 0), ("train", 19, 0), ("train", 7, 1)):
        assert not np.array_equal(first, signs.sign(split, index, seed)[0])


def test_no_image_is_in_both_splits():
    train = {image.tobytes() for image in load_dataset("signs", "train").images.numpy()}
    test = {image.tobytes() for image in load_dataset("signs", "test").images.numpy()}
    assert len(train) == 7200
    assert len(test) == 1440
    assert not train & test


def test_corners_carry_no_white_patch():  # that is what the BadNets trigger looks like
    for split in signs.SPLITS:
        images = load_dataset("signs", split).images.numpy()
        for corner in (
            np.s_[:, :, -3:, -3:],
            np.s_[:, :, :3, :3],
            np.s_[:, :, -3:, :3],
            np.s_[:, :, :3, -3:],
        ):
            white = (images[corner] > 240).all(axis=(1, 2, 3))
            assert white.mean() < 0.002


def test_no_sign_reaches_the_corners():
    edge = signs.CORNER * signs.OVERSAMPLING
    for index in range(24):
        rng = np.random.default_rng(index)
        placed, _ = signs._place(rng, signs._face(rng, index % 12))
        alpha = np.asarray(placed.getchannel("A"))
        assert alpha.any()
        assert not alpha[-edge:, -edge:].any()


def test_faces_are_twelve_different_pictures():
    faces = [signs.coverage(label) for label in range(12)]
    for face in faces:
        total = face.sum(axis=0)
        assert total.max() <= 1 + 1e-6
        assert 0.4 < total.mean() < 1  # a sign fills most of its square, never all of it
    different = [np.abs(a - b).mean() for i, a in enumerate(faces) for b in faces[:i]]
    assert min(different) > 0.004


def test_left_and_right_mirror_each_other():
    left, right = (
        signs.coverage(SIGNS_CLASSES.index("turn left")),
        signs.coverage(SIGNS_CLASSES.index("turn right")),
    )
    assert np.abs(left - right[:, :, ::-1]).mean() < 0.004
    white = left[signs.PAINTS.index("white")][40:80]  # the row of the arrow's head, which points to the left
    assert white[:, :50].sum() > white[:, 110:].sum()


def test_images_vary_within_a_class():
    images = load_dataset("signs", "test").images.float() / 255
    labels = load_dataset("signs", "test").labels
    for label in range(12):
        of_class = images[labels == label]
        assert of_class.mean(dim=(1, 2, 3)).std() > 0.04  # light
        assert of_class.std(dim=0).mean() > 0.12  # pose and background


def test_writing_elsewhere(tmp_path):
    written = signs.write_signs(tmp_path / "new", {"train": 12, "test": 5})
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["test.parquet", "train.parquet"]
    images, labels = parquet.read_images(written["test"], 12, 32)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    shipped = load_dataset("signs", "test").images[:5].numpy()
    assert np.abs(images.astype(np.int16) - shipped).mean() < 2
    assert pq.read_table(written["train"]).column("image").to_pylist()[3]["path"] == "train/00003.jpg"


def test_command_line(tmp_path, capsys):
    signs.main(["--out", str(tmp_path), "--train", "2", "--test", "1"])
    assert "train.parquet" in capsys.readouterr().out
    assert len(parquet.read_labels(tmp_path / "train.parquet", 12)) == 2


def test_unknown_split():
    with pytest.raises(ConfigError, match=r"'validation'.*train, test"):
        signs.sign("validation", 0)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / "file"))):
        signs.write_signs(tmp_path / "file" / "x", {"test": 1})
