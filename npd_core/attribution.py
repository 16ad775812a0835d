"""Attribution maps by Captum behind one function, and what the polarizer takes out of each channel.

Captum sets hooks, and some of its methods use the global random state, but networks are shared between
visitors. So every call works on a stand-in, a copy of the modules around the same weights, which is dropped
with all its hooks even after an exception; random numbers come from a fixed seed, and the global state is
restored.
"""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from npd_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from npd_core.polarizer.insertion import PolarizedNet

STEPS = 32
"""Points of the integral in Integrated Gradients."""
DRAWS = 24
"""Random points of GradientShap for each image."""
BATCH = 128
"""Images in one forward pass of a method that needs many."""
GREY = 0.5
"""Pixel value of the reference image: mid gray, so that black and white both count."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """Facts that help to read the map of a method."""

    title: str
    sentence: str
    """What the map shows."""
    look_for: str
    """What a backdoor does to it."""
    source: str


METHODS: dict[str, MethodInfo] = {
    "integrated_gradients": MethodInfo(
        "Integrated Gradients",
        "Adds up the gradient between a gray image and this one; the map sums to the change of the logit.",
        "In a backdoored network most of the sum lies on the trigger; in a polarized one it should not.",
        "Sundararajan et al. 2017",
    ),
    "saliency": MethodInfo(
        "Saliency",
        "The gradient of the logit at each pixel: which small changes of the image would change the score.",
        "The map is noisy. Look at where strong spots cluster, not at single pixels.",
        "Simonyan et al. 2014",
    ),
    "gradient_shap": MethodInfo(
        "GradientShap",
        "Gradient at random points between black, gray or white and this image, times their difference.",
        "Similar to Integrated Gradients, but with several references: a trigger should stand out in both.",
        "Lundberg and Lee 2017",
    ),
    "layer_gradcam": MethodInfo(
        "Grad-CAM",
        "Weighs the feature maps of the last stage by their mean gradient: a coarse map of the evidence.",
        "The trigger moves the warm region from the object to itself; the polarizer should move it back.",
        "Selvaraju et al. 2017",
    ),
    "occlusion": MethodInfo(
        "Occlusion",
        "Covers one patch after another with gray and shows how much the logit falls. It uses no gradient.",
        "Covering a patch trigger stops the attack, so its position stands out; a blended one is spread out.",
        "Zeiler and Fergus 2014",
    ),
}
"""Methods of `attribute`, in the order of the menu."""


class ChannelAttribution(NamedTuple):
    """Effect of the polarizer on each channel of its layer, in units of the logit; means over the images.

    With h the input of the polarizer, g(h) its output, F the rest of the network up to the logit of `target`,
    and A(a -> b) the integrated gradients of F on the straight line from features a to b, summed over the
    positions of a channel:

        after       A(0 -> g(h))                        sums to F(g(h)) - F(0)
        suppressed  A(g(h) -> h)                        sums to F(h) - F(g(h)), the fall of the logit
        before      after + suppressed                  sums to F(h) - F(0)

    so `suppressed` is exactly 0 for an unchanged channel, and negative where the change raises the logit.
    F(h) is the logit of the backdoored network.
    """

    before: Tensor  # (C,) float32
    after: Tensor  # (C,) float32
    suppressed: Tensor  # (C,) float32
    activation_before: Tensor  # (C,) float32, mean |h| over images and positions
    activation_after: Tensor  # (C,) float32, mean |g(h)|
    target: Tensor  # (B,) int64
    logit_before: float  # mean F(h)
    logit_after: float  # mean F(g(h))


def attribute(
    net: nn.Module,
    x: Tensor,
    target: Tensor | int,
    method: str,
    layer: str | None = None,
    *,
    steps: int = STEPS,
    baseline: float | Tensor = GREY,
    seed: int = 0,
) -> Tensor:
    """Return a signed map of the evidence for (positive) and against (negative) the class `target`.

    To compare the backdoored and the polarized network, use the same `target` and color both maps on one
    `shared_scale`.

    Args:
        net: images in [0, 1] -> logits (B, K); not changed, gradients and hooks included.
        x: images, (B, 3, H, W) in [0, 1].
        target: class to explain, one for all images or (B,) int64.
        method: one of METHODS.
        layer: module with the output that Grad-CAM weighs; None: `gradcam_layer(net)`. Other methods take
            none.
        steps: points of the integral in Integrated Gradients.
        baseline: reference image of Integrated Gradients and Occlusion, a value or (1 or B, 3, H, W).
        seed: of the random points of GradientShap.
    Returns:
        maps, (B, H, W) float32 on the device of `x`, summed over the colors, in logits. Saliency: logits per
        unit of pixel value. Occlusion: fall of the logit, mean over the windows that cover a pixel.
    Raises:
        UnknownNameError: a method or layer that does not exist.
        ConfigError: `layer` with a method that does not take it, or images of another shape.
    """
    if method not in METHODS:
        raise unknown_name("attribution method", method, METHODS)
    if x.ndim != 4:
        raise ConfigError(f"Images must be a batch of shape (B, 3, H, W), got shape {tuple(x.shape)}.")
    if layer is not None and method != "layer_gradcam":
        raise ConfigError(f"Only layer_gradcam takes a `layer`, {method} does not: leave it out.")
    x = x.detach().float().clone()
    labels = _targets(target, x)
    baseline = baseline if isinstance(baseline, Tensor) else torch.full_like(x[:1], baseline)
    copied = stand_in(net)
    with _quiet(), torch.enable_grad():
        if method == "integrated_gradients":
            found = _integrated_gradients(copied, x, baseline.expand_as(x), labels, steps)
        elif method == "saliency":
            found = Saliency(copied).attribute(x, target=labels, abs=False)
        elif method == "gradient_shap":
            found = _gradient_shap(copied, x, labels, seed)
        elif method == "layer_gradcam":
            name = gradcam_layer(net) if layer is None else layer
            coarse = LayerGradCam(copied, _submodule(copied, name)).attribute(x, target=labels)
            found = LayerAttribution.interpolate(coarse, x.shape[-2:], interpolate_mode="bilinear")
        else:
            found = _occlusion(copied, x, labels, baseline)
    return found.detach().sum(dim=1).float()


def shared_scale(*maps: Tensor | np.ndarray, quantile: float = 0.995) -> float:
    """Return one color scale for several maps: colors run from -scale to scale. Always above 0.

    It is the given quantile of all absolute values, so that a single pixel does not fade out the others.
    """
    values = [torch.as_tensor(m).detach().float().abs().flatten().cpu() for m in maps]
    flat = torch.cat([torch.zeros(0), *values])
    if flat.numel() == 0:
        return 1.0
    scale = float(torch.quantile(flat, quantile))
    scale = scale if scale > 0 else float(flat.max())
    return scale if np.isfinite(scale) and scale > 0 else 1.0


def polarizer_attribution(
    net: PolarizedNet,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    steps: int = 16,
) -> ChannelAttribution:
    """Return which channels the polarizer suppressed for these images, as ChannelAttribution defines it.

    Args:
        net: the polarized network; not changed.
        x: images, (B, 3, H, W) in [0, 1].
        target: class with the logit to follow, one for all or (B,); None: the backdoored network's own
            prediction.
        steps: points of each of the two integrals.
    """
    x = x.detach().float().clone()
    copied = stand_in(net)
    polarizer = copied.get_submodule(_name_of(net, net.polarizer))
    before, after, logits_after = _around(copied, polarizer, x)
    features = after
    polarizer.register_forward_hook(lambda *_: features)

    def tail(given: Tensor, images: Tensor) -> Tensor:
        nonlocal features
        features = given
        return copied(images)

    with torch.no_grad():
        logits_before = tail(before, x)
    labels = logits_before.argmax(dim=1) if target is None else _targets(target, x)

    def along(start: Tensor, end: Tensor) -> Tensor:
        with _quiet(), torch.enable_grad():
            found = _integrated_gradients(tail, end, start, labels, steps, x)
        return found.detach().sum(dim=(2, 3)).mean(dim=0).float()

    passed, suppressed = along(torch.zeros_like(after), after), along(after, before)
    rows = torch.arange(len(x), device=x.device)
    return ChannelAttribution(
        passed + suppressed,
        passed,
        suppressed,
        before.abs().mean(dim=(0, 2, 3)),
        after.abs().mean(dim=(0, 2, 3)),
        labels,
        float(logits_before[rows, labels].mean()),
        float(logits_after[rows, labels].mean()),
    )


@torch.no_grad()
def _around(net: nn.Module, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return input and output of `module`, float32, and the logits of `net`."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((inputs[0].detach().float().contiguous(), output.detach().float().contiguous()))

    handle = module.register_forward_hook(keep)
    logits = net(x)
    handle.remove()
    before, after = found
    return before, after, logits


def _integrated_gradients(
    forward: Callable[..., Tensor], x: Tensor, baseline: Tensor, labels: Tensor, steps: int, *more: Tensor
) -> Tensor:
    """Return Captum's integrated gradients; `more` are further arguments of `forward`."""
    found: Tensor = IntegratedGradients(forward).attribute(
        x,
        baselines=baseline,
        target=labels,
        additional_forward_args=more or None,
        n_steps=steps,
        internal_batch_size=max(BATCH, len(x)),
    )
    return found


def gradcam_layer(net: nn.Module) -> str:
    """Return the path of the last block of the last stage (`...layer4.1`), else of the last convolution with
    a kernel larger than 1x1. Raises UnknownNameError when the network has neither."""
    modules = dict(net.named_modules())
    blocks = [name for name in modules if re.search(r"(^|\.)layer\d+\.\d+$", name)]
    names = blocks or [k for k, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    if not names:
        raise unknown_name("Grad-CAM layer", "last stage", [])
    return names[-1]


def stand_in(net: nn.Module) -> nn.Module:
    """Return a copy of the modules of `net` with the same weights and buffers, for hooks of its own."""
    shared = {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())}
    return copy.deepcopy(net, dict(shared)).eval()


def _name_of(net: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in net.named_modules() if found is module)


_random = threading.Lock()


def _gradient_shap(net: nn.Module, x: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Captum uses the global random state: one call at a time, from `seed`, and the state restored."""
    references = torch.cat([torch.full_like(x[:1], value) for value in (0.0, GREY, 1.0)])
    with _random, torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        kept = np.random.get_state()  # noqa: NPY002
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            return GradientShap(net).attribute(x, baselines=references, n_samples=DRAWS, target=labels)
        finally:
            np.random.set_state(kept)  # noqa: NPY002


def _occlusion(net: nn.Module, x: Tensor, labels: Tensor, baseline: Tensor) -> Tensor:
    """Windows are a fifth of the image wide and move by half their width. A window covers all colors and
    counts once."""
    size = max(1, round(x.shape[-1] / 5))
    stride = max(1, size // 2)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return net(images)

    found: Tensor = Occlusion(logits).attribute(
        x,
        sliding_window_shapes=(x.shape[1], size, size),
        strides=(x.shape[1], stride, stride),
        target=labels,
        baselines=baseline,
        perturbations_per_eval=max(1, BATCH // len(x)),
    )
    return found / x.shape[1]


def _targets(target: Tensor | int, x: Tensor) -> Tensor:
    labels = torch.as_tensor(target, dtype=torch.int64, device=x.device)
    if labels.ndim == 0:
        return labels.repeat(len(x))
    if labels.shape != x.shape[:1]:
        raise ConfigError(
            f"`target` must be one class, or one for each of {len(x)} images, got {tuple(labels.shape)}."
        )
    return labels


def _submodule(net: nn.Module, name: str) -> nn.Module:
    modules = dict(net.named_modules())
    found = next((modules[n] for n in (name, f"net.{name}", f"net.net.{name}") if n in modules), None)
    if found is None:
        raise unknown_name("layer", name, [n for n in modules if n])
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Captum's warning about inputs that do not require a gradient, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"captum\..*")
        warnings.filterwarnings("ignore", message=r".*required_grads.*|.*non-full backward hook.*")
        yield
