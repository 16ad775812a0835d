"""Display names: one word for each metric, defense, attack, architecture, data set, loss term and run state.

Every table, figure, page and command takes its words from here, so that one thing has one name everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

from npd_core.attack_info import ATTACK_INFO
from npd_core.data.spec import DATASETS


class MetricName(NamedTuple):
    """One metric in words."""

    short: str
    long: str
    help: str
    """One sentence that explains it."""
    lower_is_better: bool = False

    @property
    def full(self) -> str:
        """Short and long name: "ASR, attack success rate"."""
        return f"{self.short}, {self.long}"


METRICS = {
    "acc": MetricName(
        "ACC", "clean accuracy", "Share of clean test images that are predicted as their true class."
    ),
    "asr": MetricName(
        "ASR",
        "attack success rate",
        "Share of triggered test images that are predicted as the target class.",
        lower_is_better=True,
    ),
    "ra": MetricName(
        "RA", "robust accuracy", "Share of triggered test images that are predicted as their true class."
    ),
    "der": MetricName(
        "DER",
        "defense effectiveness rating",
        "Eq. 6 of the paper: (fall of ASR - fall of ACC + 1) / 2, falls below 0 counted as 0. "
        "1 is a perfect defense, 0.5 means no effect.",
    ),
}
"""By the name of the field in results and records, in the order in which they are shown."""
CURVES = ("acc", "asr", "ra")
"""The metrics that are measured after every epoch."""

DEFENSES = {
    "none": "No defense",
    "fp": "FP",
    "nad": "NAD",
    "nc": "NC",
    "anp": "ANP",
    "i_bau": "i-BAU",
    "ep": "EP",
    "npd_uu": "NPD-UU",
    "npd_up": "NPD-UP",
    "npd_tu": "NPD-TU",
    "npd_tp": "NPD-TP",
    "npd": "NPD",
}
"""In the order of the paper's tables, and spelled as there."""

ATTACKS = {name: info.title for name, info in ATTACK_INFO.items()} | {"clean": "clean model"}
"""Titles for visitors; the last is that of a network without a backdoor."""

EXPORT = (
    "x = torch.rand(2, 3, 32, 32)  # images of the size that the network takes",
    "names = dict(input_names=['x'], dynamic_axes={'x': [0]}, opset_version=17)",
    "torch.onnx.export(net.cpu().eval(), (x,), 'net.onnx', dynamo=False, **names)",
)
"""The three lines that export a network as ONNX, for `npd import` to read."""

ARCHITECTURES = {"preact_resnet18": "PreAct-ResNet18", "vgg19_bn": "VGG19-BN"}

DATASET_TITLES = {name: spec.title for name, spec in DATASETS.items()}

LOSS_TERMS = {
    "total": "total",
    "bn": "L<sub>bn</sub>",
    "asr": "L<sub>asr</sub>",
    "bce1": "L<sub>bce1</sub>",
    "bce2": "L<sub>bce2</sub>",
}
"""Terms of the loss in the order in which they are drawn: the weighted sum, Eq. 5, 2 and the two terms of Eq.
3."""

RUN_STATES = {
    "queued": "queued",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "interrupted": "interrupted",
}


def defense_name(name: str) -> str:
    """Name of a defense; one that was added from outside the project is shown by its id."""
    return DEFENSES.get(name, name)


def attack_name(name: str) -> str:
    """Title of an attack, also of one registered from outside the project; otherwise the id."""
    return ATTACK_INFO[name].title if name in ATTACK_INFO else ATTACKS.get(name, name)


def architecture_name(name: str) -> str:
    """Name of an architecture; that of an uploaded model is shown by its id."""
    return ARCHITECTURES.get(name, name)


def dataset_name(name: str) -> str:
    """Name of a data set; that of uploaded images is shown by its id."""
    return DATASET_TITLES.get(name, name)
