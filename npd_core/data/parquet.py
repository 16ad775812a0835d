"""Read and write images in parquet files of the Hugging Face layout, with limits.

Column `image` is a struct of `bytes` (an encoded image) and `path`; column `label` is int64; the schema
metadata `huggingface` is JSON that lists the class names. A file whose only column of images, or of whole
numbers, has another name is read as well. Works on numpy arrays and imports no torch.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from npd_core.data.upright import to_rgb, turn_of
from npd_core.errors import DataMissingError, StorageError, first_line

MAX_PIXELS = 4096 * 4096
"""Largest image that is decoded, to limit memory."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF")
"""Formats that are decoded. Others are refused: some run an interpreter, such as EPS."""
ROWS_PER_GROUP = 2048
CHUNK = 512
"""Images decoded by one task of the thread pool."""


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataMissingError(
            f"{path} is missing; restore the file or fetch the data set with `npd data get`."
        )
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{path} is not a readable parquet file; fetch it again. ({first_line(error)})"
        ) from error
    for column, fits in (("image", _holds_images), ("label", pa.types.is_integer)):
        if not _named(file, column, fits):
            columns = ", ".join(sorted(file.schema_arrow.names)) or "none"
            raise StorageError(
                f"{path} has no column {column!r} (it has: {columns}); image data needs `image` (bytes, "
                "path) and `label`."
            )
    return file


def _holds_images(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _named(file: pq.ParquetFile, column: str, fits: Callable[[pa.DataType], bool]) -> str:
    """Return `column`, or the only column of a type that fits; empty where there is neither."""
    if column in file.schema_arrow.names:
        return column
    names = [field.name for field in file.schema_arrow if fits(field.type)]
    return str(names[0]) if len(names) == 1 else ""


def _image(file: pq.ParquetFile) -> str:
    return _named(file, "image", _holds_images)


def _label(file: pq.ParquetFile) -> str:
    return _named(file, "label", pa.types.is_integer)


@contextmanager
def _reading(path: Path, column: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"{path} is damaged in its column {column!r}; fetch it again. ({first_line(error)})"
        ) from error


def class_names(path: Path) -> tuple[str, ...]:
    """Return the class names in the file's metadata, by label; empty when it has none."""
    file = _open(path)
    metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[_label(file)]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def unpacked(path: Path) -> int:
    """Return how many bytes all images take in memory, encoded. Reads a few rows at a time.

    That may be many times the size of the file, where many rows share one blob. Raises StorageError.
    """
    file = _open(path)
    with _reading(path, _image(file)):
        batches = file.iter_batches(batch_size=16, columns=[_image(file)])
        return sum(batch.nbytes for batch in batches)


def read_labels(path: Path, num_classes: int) -> NDArray[np.int64]:
    """Read the labels, (N,) int64 in [0, num_classes), without reading the images.

    Raises:
        DataMissingError: no such file.
        StorageError: damaged, without a `label` column, or with labels out of range.
    """
    return _labels(path, _open(path), num_classes)


def _labels(path: Path, file: pq.ParquetFile, num_classes: int) -> NDArray[np.int64]:
    name = _label(file)
    with _reading(path, name):
        column = file.read(columns=[name]).column(name)
    try:
        labels = np.ascontiguousarray(column.cast(pa.int64()).to_numpy())
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{path}: column {name!r} holds {column.type}, expected whole numbers.") from error
    if labels.dtype != np.int64:  # numpy turns missing values into NaN
        raise StorageError(f"{path}: column {name!r} has {column.null_count} rows without a value.")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise StorageError(
            f"{path}: label {labels[row]} in row {row} is outside 0 to {num_classes - 1}; is it another data "
            "set?"
        )
    return labels


def read_images(
    path: Path,
    num_classes: int,
    size: int,
    *,
    rows: slice | NDArray[np.int64] | None = None,
    turned: list[int] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode the images of a parquet file, or of some of its rows.

    Args:
        num_classes: labels must lie in [0, num_classes).
        size: height and width; images of another size are resized.
        rows: which rows to decode, as a slice or as positions in any order; None: all.
        turned: as for `decode_images`.
    Returns:
        images (N, 3, size, size) uint8 in RGB, labels (N,) int64.
    Raises:
        DataMissingError: no such file.
        StorageError: damaged file, wrong columns, labels out of range, or an image that cannot be decoded.
    """
    file = _open(path)
    labels = _labels(path, file, num_classes)
    name = _image(file)
    kind = file.schema_arrow.field(name).type
    if not _holds_images(kind):
        raise StorageError(f"{path}: column {name!r} holds {kind}, expected a struct with `bytes`.")
    kind = kind.field("bytes").type
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise StorageError(
            f"{path}: `bytes` of column {name!r} holds {kind}, expected the bytes of image files."
        )
    chosen = np.arange(len(labels))[slice(None) if rows is None else rows]
    coded = _coded(path, file, chosen)
    return decode_images(coded, size, name=str(path), rows=chosen, turned=turned), labels[chosen]


def _coded(path: Path, file: pq.ParquetFile, rows: NDArray[np.int64]) -> list[bytes | None]:
    """Return the encoded images of these rows, with few others in memory at a time."""
    order = np.argsort(rows, kind="stable")
    in_order = rows[order]
    found: list[bytes | None] = [None] * len(rows)
    start = 0
    name = _image(file)
    with _reading(path, name):
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=[f"{name}.bytes"]):
            first, last = np.searchsorted(in_order, (start, start + batch.num_rows))
            values = batch.column(0).field("bytes").take(pa.array(in_order[first:last] - start))
            for place, value in zip(order[first:last], values.to_pylist(), strict=True):
                found[place] = value
            start += batch.num_rows
    return found


def decode_images(
    coded: Sequence[bytes | None],
    size: int,
    *,
    name: str = "images",
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    turned: list[int] | None = None,
) -> NDArray[np.uint8]:
    """Decode images into one array, on several threads (PIL releases the interpreter lock).

    Args:
        coded: JPEG, PNG, WebP, ... one per image.
        size: height and width; other sizes are resized with an antialiased bilinear filter.
        name, rows: image i is row `rows[i]` of `name` in messages.
        turned: receives the positions of the images that were rotated as their Exif block says, in any order.
    Returns:
        (N, 3, size, size) uint8 in RGB.
    """
    out = np.empty((len(coded), 3, size, size), np.uint8)

    def decode(start: int) -> None:
        pixels = np.empty((min(CHUNK, len(coded) - start), size, size, 3), np.uint8)
        for i in range(len(pixels)):
            row = start + i if rows is None else rows[start + i]
            pixels[i], rotated = _decode(coded[start + i], size, f"{name}, row {row}")
            if rotated and turned is not None:
                turned.append(start + i)
        out[start : start + len(pixels)] = pixels.transpose(0, 3, 1, 2)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(0, len(coded), CHUNK)):
            pass
    return out


def _decode(coded: bytes | None, size: int, where: str) -> tuple[NDArray[np.uint8], bool]:
    """Return the pixels, (size, size, 3), and whether the image was rotated to be upright."""
    if not coded:
        raise StorageError(f"{where}: the image has no bytes; export the data set with the images embedded.")
    try:
        with Image.open(io.BytesIO(coded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                found = f"{image.width} x {image.height}"
                raise StorageError(
                    f"{where}: an image of {found} pixels is too large; the limit is {MAX_PIXELS} pixels."
                )
            turn, rgb = turn_of(image), to_rgb(image)
            rgb = rgb if turn is None else rgb.transpose(turn)
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(rgb), turn is not None
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise StorageError(
            f"{where}: the image cannot be decoded; fetch the file again. ({first_line(error)})"
        ) from error


def write_images(path: Path, rows: Iterable[tuple[str, bytes, int]], classes: Sequence[str]) -> Path:
    """Write (path, encoded bytes, label) rows as one parquet file; an older file stays until it is complete.

    Raises:
        StorageError: the file cannot be written.
    """
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        options = {"compression": "zstd", "compression_level": 12, "use_dictionary": False}
        with pq.ParquetWriter(partial, schema, **options) as writer:
            group: list[tuple[str, bytes, int]] = []
            for row in rows:
                group.append(row)
                if len(group) == ROWS_PER_GROUP:
                    writer.write_table(_table(group, schema))
                    group = []
            if group:
                writer.write_table(_table(group, schema))
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise StorageError(
            f"{path} cannot be written ({reason}); free some space or choose another folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _table(group: Sequence[tuple[str, bytes, int]], schema: pa.Schema) -> pa.Table:
    images = [{"bytes": data, "path": name} for name, data, _ in group]
    labels = [label for *_, label in group]
    return pa.table(
        [pa.array(images, schema.field("image").type), pa.array(labels, pa.int64())], schema=schema
    )
