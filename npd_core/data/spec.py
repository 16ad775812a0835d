"""Facts about the data sets. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from npd_core import paths
from npd_core.errors import DataMissingError, unknown_name

Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a data set, whether or not its files are on this machine."""

    id: str
    title: str
    """Display name."""
    classes: tuple[str, ...]
    """Class names by label; empty if they are in the files, see `load.class_names`."""
    num_classes: int
    size: int
    """Height and width in pixels; images of another size are resized."""
    mean: Color
    """Per channel, of pixels in [0, 1]: the normalization inside the models."""
    std: Color
    train_images: int
    test_images: int
    flip: bool
    """Whether training may mirror images: a mirrored traffic sign is another one."""
    source: str
    """How to get it."""


SIGNS_CLASSES = (
    "speed limit 80",
    "stop",
    "yield",
    "no entry",
    "priority road",
    "speed limit 30",
    "speed limit 50",
    "turn left",
    "turn right",
    "pedestrians",
    "roadworks",
    "roundabout",
)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

GTSRB_CLASSES = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by trucks",
    "priority at the next crossing",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "curve to the left",
    "curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "roadworks",
    "traffic lights",
    "pedestrians",
    "children",
    "bicycles",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "straight only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by trucks",
)

DATASETS: dict[str, DatasetSpec] = {
    spec.id: spec
    for spec in (
        DatasetSpec(
            id="signs",
            title="Traffic signs",
            classes=SIGNS_CLASSES,
            num_classes=12,
            size=32,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            train_images=7200,
            test_images=1440,
            flip=False,
            source="Shipped with this project; `python -m scripts.draw_signs` draws it again.",
        ),
        DatasetSpec(
            id="cifar10",
            title="CIFAR-10",
            classes=CIFAR10_CLASSES,
            num_classes=10,
            size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.247, 0.243, 0.261),
            train_images=50000,
            test_images=10000,
            flip=True,
            source="`npd data get cifar10` downloads it (170 MB).",
        ),
        DatasetSpec(
            id="gtsrb",
            title="GTSRB",
            classes=GTSRB_CLASSES,
            num_classes=43,
            size=32,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            train_images=39209,
            test_images=12630,
            flip=False,
            source="`npd data get gtsrb` downloads the German traffic signs (365 MB).",
        ),
        DatasetSpec(
            id="tiny_imagenet",
            title="Tiny ImageNet",
            classes=(),
            num_classes=200,
            size=64,
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2302, 0.2265, 0.2262),
            train_images=100000,
            test_images=10000,
            flip=False,
            source="`npd data get tiny_imagenet` downloads its archive (248 MB).",
        ),
    )
}


NORMALISATIONS: dict[str, tuple[Color, Color]] = {
    "none: pixels in [0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "from -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    **{spec.title: (spec.mean, spec.std) for spec in DATASETS.values() if any(spec.mean)},
}
"""Mean and deviation that networks are usually trained with, by name; for uploaded models."""

UPLOAD_SPEC = "data.json"


def spec_text(spec: DatasetSpec) -> str:
    """Return the facts as JSON text, the content of UPLOAD_SPEC."""
    return json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n"


def get_dataset(name: str) -> DatasetSpec:
    """Return the facts of a data set of this project, or of uploaded images, which have theirs beside them.

    Raises:
        UnknownNameError: no such data set; names the nearest one.
        DataMissingError: the facts about uploaded images cannot be read.
    """
    folder = paths.uploaded(name)
    if folder is not None:
        try:
            values: dict[str, Any] = json.loads((folder / UPLOAD_SPEC).read_text(encoding="utf-8"))
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return DatasetSpec(**values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataMissingError(
                f"The images of {name} are not on this machine: import the model again."
            ) from error
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
