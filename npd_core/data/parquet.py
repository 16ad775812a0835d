"""Read and write images in parquet files of the Hugging Face layout, with limits.

Column `image` is a struct of `bytes` (an encoded image) and `path`; column `label` is int64; the schema
metadata `huggingface` is JSON that lists the class names. Works on numpy arrays and imports no torch.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

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
    columns = set(file.schema_arrow.names)
    missing = [name for name in ("image", "label") if name not in columns]
    if missing:
        raise StorageError(
            f"{path} has no column {missing[0]!r} (it has: {', '.join(sorted(columns)) or 'none'}); "
            "image data needs `image` (bytes, path) and `label`."
        )
    return file


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
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def unpacked(path: Path) -> int:
    """Return how many bytes all images take in memory, encoded. Reads a few rows at a time.

    That may be many times the size of the file, where many rows share one blob. Raises StorageError.
    """
    with _reading(path, "image"):
        return sum(batch.nbytes for batch in _open(path).iter_batches(batch_size=16, columns=["image"]))


def read_labels(path: Path, num_classes: int) -> NDArray[np.int64]:
    """Read the labels, (N,) int64 in [0, num_classes), without reading the images.

    Raises:
        DataMissingError: no such file.
        StorageError: damaged, without a `label` column, or with labels out of range.
    """
    return _labels(path, _open(path), num_classes)


def _labels(path: Path, file: pq.ParquetFile, num_classes: int) -> NDArray[np.int64]:
    with _reading(path, "label"):
        column = file.read(columns=["label"]).column("label")
    try:
        labels = np.ascontiguousarray(column.cast(pa.int64()).to_numpy())
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{path}: column 'label' holds {column.type}, expected whole numbers.") from error
    if labels.dtype != np.int64:  # numpy turns missing values into NaN
        raise StorageError(f"{path}: column 'label' has {column.null_count} rows without a value.")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise StorageError(
            f"{path}: label {labels[row]} in row {row} is outside 0 to {num_classes - 1}; is it another data "
            "set?"
        )
    return labels


def read_images(
    path: Path, num_classes: int, size: int, *, rows: slice | NDArray[np.int64] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode the images of a parquet file, or of some of its rows.

    Args:
        num_classes: labels must lie in [0, num_classes).
        size: height and width; images of another size are resized.
        rows: which rows to decode, as a slice or as positions in any order; None: all.
    Returns:
        images (N, 3, size, size) uint8 in RGB, labels (N,) int64.
    Raises:
        DataMissingError: no such file.
        StorageError: damaged file, wrong columns, labels out of range, or an image that cannot be decoded.
    """
    file = _open(path)
    labels = _labels(path, file, num_classes)
    kind = file.schema_arrow.field("image").type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise StorageError(f"{path}: column 'image' holds {kind}, expected a struct with `bytes`.")
    kind = kind.field("bytes").type
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise StorageError(
            f"{path}: `bytes` of column 'image' holds {kind}, expected the bytes of image files."
        )
    chosen = np.arange(len(labels))[slice(None) if rows is None else rows]
    coded = _coded(path, file, chosen)
    return decode_images(coded, size, name=str(path), rows=chosen), labels[chosen]


def _coded(path: Path, file: pq.ParquetFile, rows: NDArray[np.int64]) -> list[bytes | None]:
    """Return the encoded images of these rows, with few others in memory at a time."""
    order = np.argsort(rows, kind="stable")
    in_order = rows[order]
    found: list[bytes | None] = [None] * len(rows)
    start = 0
    with _reading(path, "image"):
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=["image.bytes"]):
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
) -> NDArray[np.uint8]:
    """Decode images into one array, on several threads (PIL releases the interpreter lock).

    Args:
        coded: JPEG, PNG, WebP, ... one per image.
        size: height and width; other sizes are resized with an antialiased bilinear filter.
        name, rows: image i is row `rows[i]` of `name` in messages.
    Returns:
        (N, 3, size, size) uint8 in RGB.
    """
    out = np.empty((len(coded), 3, size, size), np.uint8)

    def decode(start: int) -> None:
        pixels = np.empty((min(CHUNK, len(coded) - start), size, size, 3), np.uint8)
        for i in range(len(pixels)):
            row = start + i if rows is None else rows[start + i]
            pixels[i] = _decode(coded[start + i], size, f"{name}, row {row}")
        out[start : start + len(pixels)] = pixels.transpose(0, 3, 1, 2)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(0, len(coded), CHUNK)):
            pass
    return out


def _decode(coded: bytes | None, size: int, where: str) -> NDArray[np.uint8]:
    if not coded:
        raise StorageError(f"{where}: the image has no bytes; export the data set with the images embedded.")
    try:
        with Image.open(io.BytesIO(coded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                found = f"{image.width} x {image.height}"
                raise StorageError(
                    f"{where}: an image of {found} pixels is too large; the limit is {MAX_PIXELS} pixels."
                )
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(rgb)
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
