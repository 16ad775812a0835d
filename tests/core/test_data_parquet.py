from __future__ import annotations

import io
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npd_core.data import parquet
from npd_core.errors import DataMissingError, StorageError


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colored(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def rows(pixels: np.ndarray, classes: int = 3):
    return [(f"{i}.png", png(Image.fromarray(p)), i % classes) for i, p in enumerate(pixels)]


def write_table(path, images, labels, label_type=None):
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(images, image_type), "label": pa.array(labels, label_type)}), path
    )
    return path


def test_what_is_written_is_read_back_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(parquet, "CHUNK", 3)
    pixels = colored(11)
    file = parquet.write_images(tmp_path / "x.parquet", rows(pixels), ("a", "b", "c"))
    images, labels = parquet.read_images(file, 3, 32)
    assert images.dtype == np.uint8
    assert np.array_equal(images, pixels.transpose(0, 3, 1, 2))
    assert labels.dtype == np.int64
    assert labels.tolist() == [i % 3 for i in range(11)]
    assert parquet.class_names(file) == ("a", "b", "c")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_some_rows_in_the_order_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 4)
    pixels = colored(11)
    file = parquet.write_images(tmp_path / "x.parquet", rows(pixels), "abc")
    images, labels = parquet.read_images(file, 3, 32, rows=np.asarray([9, 0, 5]))
    assert np.array_equal(images, pixels[[9, 0, 5]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 0, 2]
    assert len(parquet.read_images(file, 3, 32, rows=slice(2, 6))[1]) == 4
    assert parquet.read_images(file, 3, 32, rows=slice(0, 0))[0].shape == (0, 3, 32, 32)


def test_other_sizes_and_color_modes(tmp_path):
    gray = Image.new("L", (64, 48), 100)
    clear = Image.new("RGBA", (32, 32), (10, 20, 30, 255))
    palette = Image.new("RGB", (8, 8), (204, 0, 0)).convert("P")
    coded = [png(image) for image in (gray, clear, palette)]
    images = parquet.decode_images(coded, 32)
    assert images.shape == (3, 3, 32, 32)
    assert (images[0] == 100).all()
    assert images[1, :, 5, 5].tolist() == [10, 20, 30]
    assert images[2, :, 5, 5].tolist() == [204, 0, 0]


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    image = parquet.decode_images([png(Image.fromarray(stripes))], 32)
    assert np.abs(image[..., 4:-4].astype(int) - 100).max() <= 2


def test_labels_alone_need_no_image(tmp_path):
    file = write_table(tmp_path / "x.parquet", [{"bytes": b"no image", "path": "a"}] * 3, [2, 0, 1])
    assert parquet.read_labels(file, 3).tolist() == [2, 0, 1]


def test_absent_file(tmp_path):
    with pytest.raises(DataMissingError, match=r"train\.parquet.*`npd data get`"):
        parquet.read_images(tmp_path / "train.parquet", 3, 32)


def test_file_that_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"hello" * 100)
    with pytest.raises(StorageError, match=r"x\.parquet"):
        parquet.read_images(tmp_path / "x.parquet", 3, 32)


def test_file_cut_short(tmp_path):
    file = parquet.write_images(tmp_path / "x.parquet", rows(colored(9)), "abc")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(StorageError, match=r"x\.parquet"):
        parquet.read_labels(file, 3)


def test_file_with_damaged_pages(tmp_path):
    file = parquet.write_images(tmp_path / "x.parquet", rows(colored(9)), "abc")
    data = bytearray(file.read_bytes())
    data[200:4000] = b"\xff" * 3800
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"x\.parquet"):
        parquet.read_images(file, 3, 32)


def test_columns_that_are_missing_or_of_another_kind(tmp_path):
    pq.write_table(pa.table({"picture": [1], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet.*'image'.*label, picture"):
        parquet.read_images(tmp_path / "a.parquet", 3, 32)
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(StorageError, match=r"'image' holds string.*`bytes`"):
        parquet.read_images(tmp_path / "b.parquet", 3, 32)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([0, 3, 1], "label 3 in row 1 .*0 to 2"),
        ([0, 1, -1], "label -1 in row 2 .*0 to 2"),
        ([0, None, 1], "'label'.* 1 row"),
        (["cat", "dog", "cat"], "'label' holds string"),
    ],
)
def test_labels_out_of_range(tmp_path, labels, values):
    file = write_table(
        tmp_path / "x.parquet", [{"bytes": png(Image.new("RGB", (32, 32))), "path": ""}] * 3, labels
    )
    with pytest.raises(StorageError, match=values):
        parquet.read_images(file, 3, 32)


@pytest.mark.parametrize(
    "coded",
    [b"not an image", png(Image.fromarray(colored(1)[0]))[:200], None, b""],
    ids=["no image", "cut short", "missing", "empty"],
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, coded):
    good = png(Image.new("RGB", (32, 32)))
    file = write_table(
        tmp_path / "x.parquet", [{"bytes": good, "path": ""}, {"bytes": coded, "path": ""}], [0, 1]
    )
    with pytest.raises(StorageError, match=r"x\.parquet, row 1:"):
        parquet.read_images(file, 3, 32)


def test_an_image_that_is_too_large_is_refused():
    with pytest.raises(StorageError, match="5000 x 4000"):
        parquet.decode_images([png(Image.new("1", (5000, 4000)))], 32)


def test_an_image_that_claims_an_absurd_size_is_refused_before_decoding():
    data = bytearray(png(Image.new("1", (8, 8))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header; 10 GB as RGB
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(StorageError, match="row 0:"):
        parquet.decode_images([bytes(data)], 32)


def test_no_class_names_in_the_file(tmp_path):
    file = write_table(tmp_path / "x.parquet", [{"bytes": b"", "path": ""}], [0])
    assert parquet.class_names(file) == ()


def test_failed_writing_leaves_the_old_file(tmp_path):
    file = parquet.write_images(tmp_path / "x.parquet", rows(colored(2)), "abc")
    before = file.read_bytes()

    def full_disk():
        yield rows(colored(1))[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        parquet.write_images(file, full_disk(), "abc")
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
