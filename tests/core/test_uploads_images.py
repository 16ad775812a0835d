"""Images of unusual and wrong kinds: what each becomes, or the message that names it."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npd_core.errors import ConfigError, StorageError
from npd_core.uploads.images import read_images

GRAY = 128
SIZE = 8


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(value: int = GRAY, size: tuple[int, int] = (6, 6)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def halves() -> Image.Image:
    """White above, black below."""
    image = Image.new("RGB", (SIZE, SIZE), "black")
    image.paste((255, 255, 255), (0, 0, SIZE, SIZE // 2))
    return image


def sixteen_bits(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((6, 6), value, np.uint16)))


def exif(turn: int) -> Image.Exif:
    block = Image.Exif()
    block[0x112] = turn
    return block


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG file that declares this size and holds almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


BLACK, WHITE, PNG = encoded(rgb(0)), encoded(rgb(255)), encoded(rgb())
CLEAR = Image.new("RGBA", (6, 6), (255, 0, 0, 0))
PALETTE = rgb().quantize()
TWO_FRAMES = encoded(rgb(), "GIF", save_all=True, append_images=[rgb(0)])


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        ("rgb.png", PNG, GRAY),
        ("jpeg.jpg", encoded(rgb(), "JPEG"), GRAY),
        ("progressive.jpeg", encoded(rgb(), "JPEG", progressive=True), GRAY),
        ("cmyk.jpg", encoded(rgb().convert("CMYK"), "JPEG"), GRAY),
        ("gray.jpg", encoded(rgb().convert("L"), "JPEG"), GRAY),
        ("webp.webp", encoded(rgb(), "WEBP", lossless=True), GRAY),
        ("bmp.bmp", encoded(rgb(), "BMP"), GRAY),
        ("ppm.ppm", encoded(rgb(), "PPM"), GRAY),
        ("animated.gif", TWO_FRAMES, GRAY),
        ("gray.png", encoded(rgb().convert("L")), GRAY),
        ("palette.png", encoded(PALETTE), GRAY),
        ("bits.png", encoded(Image.new("1", (6, 6), 1)), 255),
        ("sixteen.png", sixteen_bits(GRAY * 257), GRAY),
        ("sixteen_white.png", sixteen_bits(65535), 255),
        ("sixteen.ppm", b"P5 6 6 65535\n" + struct.pack(">H", GRAY * 257) * 36, GRAY),
        ("transparent.png", encoded(CLEAR), 255),
        ("gray_alpha.png", encoded(Image.new("LA", (6, 6), (0, 0))), 255),
        ("opaque.png", encoded(Image.new("RGBA", (6, 6), (GRAY, GRAY, GRAY, 255))), GRAY),
        ("palette_clear.png", encoded(Image.new("P", (6, 6), 0), transparency=0), 255),
        ("wide.png", encoded(rgb(size=(90, 2))), GRAY),
        ("pixel.png", encoded(rgb(size=(1, 1))), GRAY),
        ("UPPER.PNG", PNG, GRAY),
        ("png_called.jpg", PNG, GRAY),
        ("with space é.png", PNG, GRAY),
    ],
)  # fmt: skip
def test_kinds_of_images_that_are_read(tmp_path: Path, name: str, data: bytes, value: int) -> None:
    found = read_images(archive(tmp_path / "x.zip", {f"0/{name}": data}), SIZE, 2)
    assert found.images.shape == (1, 3, SIZE, SIZE)
    assert np.abs(found.images.astype(int) - value).max() <= 2
    assert found.turned == 0


def test_exif_rotation_is_applied_and_counted(tmp_path: Path) -> None:
    entries = {
        f"0/{turn}.jpg": encoded(halves(), "JPEG", exif=exif(turn), quality=100) for turn in (1, 3, 6, 8)
    }
    found = read_images(archive(tmp_path / "x.zip", entries), SIZE, 2)
    assert found.turned == 3
    bright = {"top": np.s_[..., :2, :], "bottom": np.s_[..., -2:, :], "right": np.s_[..., -2:],
              "left": np.s_[..., :2]}  # fmt: skip
    for image, side in zip(found.images, ("top", "bottom", "right", "left"), strict=True):
        assert image[bright.pop(side)].min() > 240
    assert not bright


@pytest.mark.parametrize(
    ("entries", "error", "names"),
    [
        ({"0/empty.png": b""}, StorageError, "0/empty.png"),
        ({"0/text.png": b"hello"}, StorageError, "0/text.png"),
        ({"0/cut.png": PNG[:40]}, StorageError, "0/cut.png"),
        ({"0/cut.jpg": encoded(rgb(size=(64, 64)), "JPEG")[:300]}, StorageError, "0/cut.jpg"),
        ({"0/huge.png": png_of(60_000, 60_000)}, StorageError, "0/huge.png"),
        ({"0/large.png": png_of(5000, 5000)}, StorageError, "0/large.png"),
        ({"0/eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"}, StorageError, "0/eps.png"),
        ({"0/tiff.png": encoded(rgb(), "TIFF")}, StorageError, "0/tiff.png"),
        ({"0/icon.png": encoded(rgb(), "ICO")}, StorageError, "0/icon.png"),
        ({"0/svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, StorageError, "0/svg.png"),
        ({"0/x.tiff": encoded(rgb(), "TIFF")}, ConfigError, ".png, .jpg"),
        ({"0/x.heic": b"\0\0\0 ftypheic"}, ConfigError, ".png, .jpg"),
        ({"0/x.npy": b"\x93NUMPY"}, ConfigError, ".png, .jpg"),
        ({}, ConfigError, ".png, .jpg"),
        ({"x.png": PNG}, ConfigError, "x.png"),
        ({"../0/x.png": PNG}, ConfigError, "../0/x.png"),
        ({"..\\0\\x.png": PNG}, ConfigError, "x.png"),
        ({"C:\\0\\x.png": PNG}, ConfigError, "C:"),
        ({"/0/x.png": PNG}, ConfigError, "/0/x.png"),
        ({"7/x.png": PNG}, ConfigError, "7"),
        ({"cat/x.png": PNG}, ConfigError, "1 folders"),
        ({"a/x.png": PNG, "b/x.png": PNG, "c/x.png": PNG}, ConfigError, "3 folders"),
        ({"0/x.png": PNG, "0/y.png": b"GIF89a"}, StorageError, "0/y.png"),
    ],
)
def test_kinds_of_archives_that_are_refused(
    tmp_path: Path, entries: dict[str, bytes], error: type[Exception], names: str
) -> None:
    with pytest.raises(error) as caught:
        read_images(archive(tmp_path / "x.zip", entries), SIZE, 2)
    assert names in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.tar", b"ustar"), ("x.rar", b"Rar!\x1a\x07"), ("x.7z", b"7z\xbc\xaf'\x1c"), ("x.gz", b"\x1f\x8b\x08"),
     ("x.png", PNG), ("x.zip", b""), ("x.zip", b"PK\x03\x04cut"), ("x.parquet", b"PAR1 and no more")],
)  # fmt: skip
def test_files_that_are_neither_archive_nor_parquet(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StorageError) as caught:
        read_images(tmp_path / name, SIZE, 2)
    assert str(tmp_path) not in str(caught.value)


def table(path: Path, columns: dict[str, pa.Array], names: dict[str, list[str]] | None = None) -> Path:
    features = {name: {"names": values} for name, values in (names or {}).items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def column(*values: bytes | None) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": value, "path": ""} for value in values], kind)


def test_parquet_columns_by_other_names(tmp_path: Path) -> None:
    columns = {"img": column(WHITE, BLACK), "fine": pa.array([1, 0]), "note": pa.array(["a", "b"])}
    found = read_images(table(tmp_path / "x.parquet", columns, {"fine": ["cat", "dog"]}), SIZE, 2)
    assert found.labels.tolist() == [1, 0]
    assert found.classes == ("cat", "dog")
    assert [image.max() for image in found.images] == [255, 0]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (lambda: {"a": column(PNG), "b": column(PNG), "label": pa.array([0])}, "'image'"),
        (lambda: {"image": column(PNG)}, "'label'"),
        (lambda: {"image": column(PNG), "a": pa.array([0]), "b": pa.array([0])}, "'label'"),
        (lambda: {"image": pa.array(["x"]), "label": pa.array([0])}, "'image'"),
        (lambda: {"image": column(PNG), "label": pa.array(["zero"])}, "'label'"),
        (lambda: {"image": column(PNG), "label": pa.array([5])}, "label 5"),
        (lambda: {"image": column(PNG, PNG), "label": pa.array([0, None])}, "'label'"),
        (lambda: {"image": column(None), "label": pa.array([0])}, "row 0"),
        (lambda: {"image": column(b"text"), "label": pa.array([0])}, "row 0"),
    ],
)
def test_parquet_files_that_are_refused(
    tmp_path: Path, columns: Callable[[], dict[str, pa.Array]], names: str
) -> None:
    with pytest.raises(StorageError) as caught:
        read_images(table(tmp_path / "x.parquet", columns()), SIZE, 2)
    assert names in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    found = read_images(archive(tmp_path / "x.zip", {"set\\1\\a.png": PNG, "set\\0\\b.png": PNG}), SIZE, 2)
    assert found.labels.tolist() == [0, 1]


def test_triggered_images_may_lack_a_folder(tmp_path: Path) -> None:
    some = archive(tmp_path / "x.zip", {"dog/a.png": PNG})
    found = read_images(some, SIZE, 2, ["cat", "dog"])
    assert (found.labels.tolist(), found.classes) == ([1], ("cat", "dog"))
    with pytest.raises(ConfigError, match="'dog'"):
        read_images(some, SIZE, 2, ["cat", "Dogs"])
