"""Cached images of the data sets, and what the networks predict for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from npd_core import paths
from pages.shared.cache import runs, zoo
from pages.shared.cache.files import by_files

if TYPE_CHECKING:
    from npd_core.data.clean import CleanSubset
    from npd_core.evaluation import TestSets


LOOKED_AT = 480
"""Test images out of which the first ones to show are chosen."""
CANDIDATES, SURE = 3, 0.9
"""Clearest images of a class that the network predicts, and the probability from which it is sure."""


class Samples(NamedTuple):
    """Test images by number, clean and triggered. Arrays are C-ordered and never written to."""

    indices: tuple[int, ...]
    clean: np.ndarray  # (N, 3, H, W) uint8
    triggered: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N,) int64, true class
    targets: np.ndarray  # (N,) int64, target class of the attacker
    eligible: np.ndarray  # (N,) bool: False where the true class already is the target


class Examples(NamedTuple):
    """A few images under an attack. Arrays are (N, 3, H, W) uint8."""

    clean: np.ndarray
    triggered: np.ndarray
    cross_trigger: np.ndarray | None
    """With the cross-trigger, which must change no label; None where the attack has none."""


def _no_files(*_: Any, **__: Any) -> list[Path]:
    return []


@by_files(st.cache_resource(max_entries=4, show_spinner="Reading the test images …"), zoo.model_files)
def test_sets(model_id: str) -> TestSets:
    """Return the test set of the model, clean and triggered; shared. Raises DataMissingError."""
    from npd_core.evaluation import test_sets

    found = zoo.backdoored(model_id)
    return test_sets(found.card.dataset, found.attack)


def test_labels(model_id: str) -> np.ndarray:
    """Return the true class of every test image, (N,) int64."""
    return test_sets(model_id).clean.labels.numpy()


@by_files(st.cache_data(max_entries=8, show_spinner=False), _no_files)
def class_names(dataset: str) -> tuple[str, ...]:
    """Return the names of the classes. Raises DataMissingError where only absent files have them."""
    from npd_core.data.load import class_names

    return tuple(class_names(dataset))


@by_files(st.cache_data(max_entries=64, show_spinner=False), zoo.model_files)
def samples(model_id: str, indices: tuple[int, ...]) -> Samples:
    """Return these test images, clean and triggered. Raises IndexError on a number outside the test set."""
    import torch

    attack = zoo.backdoored(model_id).attack
    clean = test_sets(model_id).clean
    chosen = torch.tensor(indices, dtype=torch.int64)
    images, labels = clean.images[chosen].contiguous(), clean.labels[chosen]
    with torch.no_grad():
        triggered = attack.apply(images.clone())
    arrays = images, triggered, labels, attack.rule.target(labels), attack.rule.eligible(labels)
    return Samples(indices, *(array.numpy().copy() for array in arrays))


def triggered(model_id: str, images: np.ndarray) -> np.ndarray:
    """Return any images, (N, 3, H, W) uint8, with the model's trigger; nothing is cached."""
    import torch

    return np.asarray(zoo.attack(model_id).apply(torch.from_numpy(images.copy())))


@by_files(st.cache_data(max_entries=8, show_spinner="Reading the test images …"), _no_files)
def first_images(dataset: str, count: int) -> np.ndarray:
    """Return a clear test image of `count` classes, (count, 3, H, W) uint8. Raises DataMissingError.

    Class 0, the usual target, is left out where the other classes are enough.
    """
    from npd_core.data.clarity import clearest
    from npd_core.data.load import load_dataset

    found = load_dataset(dataset, "test")
    images, labels = found.images[:LOOKED_AT].numpy(), found.labels[:LOOKED_AT].numpy()
    places = clearest(images, labels)
    if len(places) > count:
        places = places[1:]
    return images[places[:count]].copy()


def _files_of_examples(model_id: str | None, attack: str, dataset: str, count: int) -> list[Path]:
    return [paths.pretrained()] if model_id is None else zoo.model_files(model_id)


@by_files(st.cache_data(max_entries=64, show_spinner=False), _files_of_examples)
def examples(model_id: str | None, attack: str, dataset: str, count: int) -> Examples:
    """Return the first images of `dataset` under an attack.

    Args:
        model_id: use the trigger of this model; None: the default trigger of the attack.

    Raises:
        ConfigError: the attack has no trigger without a model.
        DataMissingError: the data set is absent.
    """
    import torch

    from npd_core.attacks import get_attack

    clean = first_images(dataset, count)
    found = get_attack(attack, dataset) if model_id is None else zoo.attack(model_id)
    images = torch.from_numpy(clean.copy())
    cross = None if found.cross is None else found.apply_cross(images).numpy()
    return Examples(clean, found.apply(images).numpy(), cross)


@by_files(st.cache_resource(max_entries=4, show_spinner="Reading the clean images …"), _no_files)
def clean_images(dataset: str, amount: int | float, seed: int) -> CleanSubset:
    """Return the clean images of the defender; shared. Raises as `load_clean`."""
    from npd_core.data.clean import load_clean

    return load_clean(dataset, amount, seed)


def predict(model_id: str, run_id: str | None, images: np.ndarray) -> np.ndarray:
    """Return probabilities, (N, K) float32, of any images; nothing is cached.

    Args:
        run_id: predict with the polarizer of this run; None: with the backdoored model.
        images: (N, 3, H, W) uint8, or float in [0, 1].
    """
    import torch

    from npd_core.evaluation import predict_proba

    net = zoo.backdoored(model_id).net if run_id is None else runs.polarized(run_id)
    return np.asarray(predict_proba(net, torch.from_numpy(np.ascontiguousarray(images))), dtype=np.float32)


@by_files(st.cache_data(max_entries=256, show_spinner=False), runs.model_and_run_files)
def predictions(model_id: str, run_id: str | None, indices: tuple[int, ...], triggered: bool) -> np.ndarray:
    """Return probabilities, (N, K) float32, of test images by number, with or without the trigger."""
    chosen = samples(model_id, indices)
    return predict(model_id, run_id, chosen.triggered if triggered else chosen.clean)


@by_files(st.cache_data(max_entries=16, show_spinner=False), zoo.model_files)
def clear(model_id: str, count: int = 6) -> tuple[int, ...]:
    """Return numbers of test images to begin with: clear ones of different classes, the clearest first.

    They are chosen by their clean pixels, and by the network being right about them and sure of it; whether
    the trigger works on them plays no part. Classes whose images already are the target are left out.

    Returns:
        at most `count` numbers; () where the network is sure of none of the images looked at.
    """
    from npd_core.data.clarity import clarity, clearest

    first = samples(model_id, tuple(range(min(LOOKED_AT, len(test_labels(model_id))))))
    able = np.flatnonzero(first.eligible)
    images, labels = first.clean[able], first.labels[able]
    chosen = clearest(images, labels, each=CANDIDATES)
    probabilities = predict(model_id, None, images[chosen])
    sure = probabilities[np.arange(len(chosen)), labels[chosen]] >= SURE
    best: dict[int, int] = {}
    for at in chosen[sure]:
        best.setdefault(int(labels[at]), int(at))
    score = clarity(images)
    places = sorted(best.values(), key=lambda at: -score[at])[:count]
    return tuple(int(able[at]) for at in places)
