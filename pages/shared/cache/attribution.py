"""Cached attributions, and one training step traced for a single image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import streamlit as st

from pages.shared.cache import images, runs, zoo
from pages.shared.cache.files import by_files

if TYPE_CHECKING:
    from torch import Tensor

    from npd_core.config.npd import NPDConfig
    from npd_core.config.request import DefenseRequest
    from npd_core.polarizer.trace import Trace

SPINNER = "Computing attributions …"


class Maps(NamedTuple):
    """Attribution of one image: by image (clean, triggered), then by network (backdoored, polarized)."""

    maps: np.ndarray  # (2, 2, H, W) float32, signed
    scale: float  # colors run from -scale to scale in all four


class Channels(NamedTuple):
    """`ChannelAttribution` of one image as plain lists, one number a channel."""

    before: list[float]
    after: list[float]
    activation_before: list[float]
    activation_after: list[float]
    logit_before: float
    logit_after: float


@by_files(st.cache_data(max_entries=64, show_spinner=SPINNER), runs.model_and_run_files)
def maps(model_id: str, run_id: str, index: int, method: str, target: int) -> Maps:
    """Return the attribution of class `target` for a test image by number. Raises as `attribute` does."""
    chosen = images.samples(model_id, (index,))
    return _maps(model_id, run_id, chosen.clean[0], chosen.triggered[0], method, target)


@by_files(st.cache_data(max_entries=16, show_spinner=SPINNER, scope="session"), runs.model_and_run_files)
def image_maps(
    model_id: str, run_id: str, clean: np.ndarray, triggered: np.ndarray, method: str, target: int
) -> Maps:
    """`maps` of any image, (3, H, W) uint8 without and with a trigger; kept for this session only."""
    return _maps(model_id, run_id, clean, triggered, method, target)


def _maps(
    model_id: str, run_id: str, clean: np.ndarray, triggered: np.ndarray, method: str, target: int
) -> Maps:
    from npd_core.attribution import attribute, shared_scale

    x = _batch(clean, triggered)
    nets = zoo.backdoored(model_id).net, runs.polarized(run_id)
    pair = [attribute(net, x, target, method).numpy() for net in nets]
    return Maps(np.stack(pair, axis=1), shared_scale(*pair))


@by_files(st.cache_data(max_entries=64, show_spinner=False), runs.model_and_run_files)
def channels(model_id: str, run_id: str, index: int, triggered: bool, target: int) -> Channels:
    """Return what the polarizer takes from each channel of its layer, for the logit of `target`."""
    chosen = images.samples(model_id, (index,))
    return _channels(run_id, (chosen.triggered if triggered else chosen.clean)[0], target)


@by_files(st.cache_data(max_entries=16, show_spinner=False, scope="session"), runs.run_files)
def image_channels(run_id: str, image: np.ndarray, target: int) -> Channels:
    """`channels` of any image, (3, H, W) uint8; kept for this session only."""
    return _channels(run_id, image, target)


def _channels(run_id: str, image: np.ndarray, target: int) -> Channels:
    from npd_core.attribution import polarizer_attribution

    found = polarizer_attribution(runs.polarized(run_id), _batch(image), target)
    return Channels(
        found.before.tolist(),
        found.after.tolist(),
        found.activation_before.tolist(),
        found.activation_after.tolist(),
        found.logit_before,
        found.logit_after,
    )


def _batch(*arrays: np.ndarray) -> Tensor:
    """Images (3, H, W) uint8 as a batch, (N, 3, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.stack(arrays)).float() / 255


def _files_of_trace(request: DefenseRequest, index: int, run_id: str | None = None) -> list[Path]:
    return runs.model_and_run_files(request.model, run_id)


@by_files(st.cache_data(max_entries=64, show_spinner="Tracing the step …"), _files_of_trace)
def trace(request: DefenseRequest, index: int, run_id: str | None = None) -> Trace:
    """Return the first step of a request, on its clean image number `index` alone.

    Args:
        run_id: start from the polarizer of this run, at its layer; None: from the identity.
    """
    from npd_core.config.npd import NPDConfig
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.polarizer.trace import trace

    cfg, card = request.config, zoo.card(request.model)
    assert isinstance(cfg, NPDConfig)
    assert request.layer is not None
    clean = images.clean_images(card.dataset, request.clean, cfg.seed)
    if run_id is not None:
        net = copy.deepcopy(runs.polarized(run_id))
    else:
        net = PolarizedNet(zoo.backdoored(request.model).net, request.layer, card.image_size)
        start = NPDConfig(bn_mode=cfg.bn_mode, holdout=cfg.holdout, seed=cfg.seed)
        net.polarizer.load_state_dict(_start(request.model, request.layer, request.clean, start))
    return trace(net, clean.images[index], int(clean.labels[index]), cfg)


@by_files(
    st.cache_resource(max_entries=16, show_spinner="Measuring the features of the clean images …"),
    zoo.model_files,
)
def _start(model_id: str, layer: str, amount: int | float, cfg: NPDConfig) -> dict[str, Tensor]:
    from npd_core.data.load import ImageSet
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.polarizer.trace import start

    card = zoo.card(model_id)
    clean = images.clean_images(card.dataset, amount, cfg.seed)
    net = PolarizedNet(zoo.backdoored(model_id).net, layer, card.image_size)
    return start(net, ImageSet(clean.images, clean.labels), cfg)
