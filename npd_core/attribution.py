"""Where a network looks: Captum's methods behind one function, and what the polarizer takes out of each channel.

Captum works through hooks, and some of its methods draw from the global random state. Neither may reach others, for
networks are shared between visitors. So every call works on a stand-in, a copy of the modules around the very same
weights, thrown away with all its hooks even after an exception; draws come from a fixed seed, and the global state is
put back.
"""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Iterator
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
"""Value of each pixel of the reference image where a method needs one: mid grey, so that black and white both count."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What a person should know of a method before reading its map."""

    title: str
    sentence: str
    """What the map shows."""
    look_for: str
    """What a backdoor does to it."""
    source: str


METHODS: dict[str, MethodInfo] = {
    "integrated_gradients": MethodInfo(
        "Integrated Gradients",
        "Adds up the gradient on the way from a grey image to this one; the map sums to the change of the logit.",
        "A backdoored network puts most of the sum on the few pixels of the trigger; a polarized one should not.",
        "Sundararajan et al. 2017",
    ),
    "saliency": MethodInfo(
        "Saliency",
        "The gradient of the logit at each pixel: which small change of the picture would move the score.",
        "It is noisy by nature. Look at where the strong spots gather, not at single pixels.",
        "Simonyan et al. 2014",
    ),
    "gradient_shap": MethodInfo(
        "GradientShap",
        "Mean gradient at random points on the way from a black, grey or white picture to this one, times the way.",
        "Close to Integrated Gradients, less tied to one reference: a trigger should stand out in both.",
        "Lundberg and Lee 2017",
    ),
    "layer_gradcam": MethodInfo(
        "Grad-CAM",
        "Weighs the feature maps of the last stage by their mean gradient: a coarse map of what speaks for the class.",
        "Under attack the warm region moves from the object to the trigger; polarized, it should move back.",
        "Selvaraju et al. 2017",
    ),
    "occlusion": MethodInfo(
        "Occlusion",
        "Covers one patch after another with grey and shows how much the logit falls. It uses no gradient.",
        "Covering a patch trigger undoes the attack, so its place lights up; a blended trigger is spread all over.",
        "Zeiler and Fergus 2014",
    ),
}
"""Methods of `attribute`, in the order in which a person should meet them."""


class ChannelAttribution(NamedTuple):
    """What the polarizer does to each channel of its layer. Floats of the logit; means over the images given.

    With h the features that reach the polarizer, g(h) those that leave it, F the rest of the network up to the logit of
    `target`, and A(a -> b) the integrated gradients of F on the straight way from features a to b, summed over the
    positions of a channel:

        after       A(0 -> g(h))                        sums to F(g(h)) - F(0)
        suppressed  A(g(h) -> h)                        sums to F(h) - F(g(h)), the fall of the logit
        before      after + suppressed                  sums to F(h) - F(0)

    so a channel that passes unchanged has `suppressed` exactly 0, and a negative one is a channel whose change raises
    the logit. F(h) is the backdoored network's logit.
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
    """Signed map of what speaks for (positive) and against (negative) the logit of `target`.

    Give the same `target` for the backdoored and the polarized network and colour both maps on one `shared_scale`.

    Args:
        net: images in [0, 1] -> logits (B, K); left exactly as it was, gradients and hooks included.
        x: images, (B, 3, H, W) in [0, 1].
        target: class whose logit is explained, one for all images or (B,) int64.
        method: one of METHODS.
        layer: module whose output Grad-CAM weighs; None: `gradcam_layer(net)`. Other methods take none.
        steps: points of the integral in Integrated Gradients.
        baseline: reference image of Integrated Gradients and Occlusion, a value or (1 or B, 3, H, W).
        seed: of the random points of GradientShap.
    Returns:
        maps, (B, H, W) float32 on the device of `x`, the colours summed, in logits. Saliency: logits per unit
        of pixel value. Occlusion: fall of the logit, mean over the windows that cover a pixel.
    Raises:
        UnknownNameError: a method or layer that does not exist.
        ConfigError: `layer` with a method that has no use for it, or images of another shape.
    """
    if method not in METHODS:
        raise unknown_name("attribution method", method, METHODS)
    if x.ndim != 4:
        raise ConfigError(f"Images must be a batch of shape (B, 3, H, W), got shape {tuple(x.shape)}.")
    if layer is not None and method != "layer_gradcam":
        raise ConfigError(f"Only layer_gradcam takes a layer, {method} explains pixels; leave the layer out.")
    x = x.detach().float().clone()
    labels = _targets(target, x)
    baseline = baseline if isinstance(baseline, Tensor) else torch.full_like(x[:1], baseline)
    alone = stand_in(net)
    with _quiet(), torch.enable_grad():
        if method == "integrated_gradients":
            found = IntegratedGradients(alone).attribute(
                x,
                baselines=baseline.expand_as(x),
                target=labels,
                n_steps=steps,
                internal_batch_size=max(BATCH, len(x)),
            )
        elif method == "saliency":
            found = Saliency(alone).attribute(x, target=labels, abs=False)
        elif method == "gradient_shap":
            found = _gradient_shap(alone, x, labels, seed)
        elif method == "layer_gradcam":
            name = gradcam_layer(net) if layer is None else layer
            coarse = LayerGradCam(alone, _submodule(alone, name)).attribute(x, target=labels)
            found = LayerAttribution.interpolate(coarse, x.shape[-2:], interpolate_mode="bilinear")
        else:
            found = _occlusion(alone, x, labels, baseline)
    return found.detach().sum(dim=1).float()


def shared_scale(*maps: Tensor | np.ndarray, quantile: float = 0.995) -> float:
    """One colour scale for maps to be compared: colours run from -scale to scale. Always above 0.

    The given quantile of all absolute values, so that a single pixel does not wash out the others.
    """
    flat = torch.cat(
        [torch.zeros(0), *(torch.as_tensor(m).detach().float().abs().flatten().cpu() for m in maps)]
    )
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
    """Which channels the polarizer suppressed for these images. ChannelAttribution says how it is defined.

    Args:
        net: the polarized network; left exactly as it was.
        x: images, (B, 3, H, W) in [0, 1].
        target: class whose logit is followed, one for all or (B,); None: the backdoored network's own prediction.
        steps: points of each of the two integrals.
    """
    x = x.detach().float().clone()
    alone = stand_in(net)
    polarizer = alone.get_submodule(_name_of(net, net.polarizer))
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["before"], seen["after"] = inputs[0].detach(), output.detach()

    handle = polarizer.register_forward_hook(keep)
    with torch.no_grad():
        logits_after = alone(x)
    handle.remove()
    before, after = seen["before"].float().contiguous(), seen["after"].float().contiguous()
    given: dict[str, Tensor] = {}
    polarizer.register_forward_hook(lambda *_: given["features"])

    def tail(features: Tensor, images: Tensor) -> Tensor:
        given["features"] = features
        return alone(images)

    with torch.no_grad():
        logits_before = tail(before, x)
    labels = logits_before.argmax(dim=1) if target is None else _targets(target, x)
    with _quiet(), torch.enable_grad():
        captum = IntegratedGradients(tail)

        def along(start: Tensor, end: Tensor) -> Tensor:
            found = captum.attribute(
                end,
                baselines=start,
                target=labels,
                additional_forward_args=(x,),
                n_steps=steps,
                internal_batch_size=max(BATCH, len(x)),
            )
            return found.detach().sum(dim=(2, 3)).mean(dim=0).float()

        passed = along(torch.zeros_like(after), after)
        suppressed = along(after, before)
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


def gradcam_layer(net: nn.Module) -> str:
    """Module path of the last block of the last stage (`...layer4.1`), else of the last convolution wider than 1x1.

    Raises UnknownNameError when the network has neither.
    """
    names = [name for name, _ in net.named_modules() if re.search(r"(^|\.)layer\d+\.\d+$", name)]
    if not names:
        names = [
            name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1
        ]
    if not names:
        raise unknown_name("Grad-CAM layer", "last stage", [])
    return names[-1]


def stand_in(net: nn.Module) -> nn.Module:
    """A copy of the modules of `net` around the same weights and buffers: hooks set on it stay its own."""
    shared = {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())}
    return copy.deepcopy(net, dict(shared)).eval()


def _name_of(net: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in net.named_modules() if found is module)


_random = threading.Lock()


def _gradient_shap(net: nn.Module, x: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Captum draws from the global state of numpy and torch: one call at a time, from `seed`, the state put back."""
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
    """Windows a fifth of the picture wide, moved by half their width. A window covers all colours and counts once."""
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
            f"One target class for each of {len(x)} images is needed, got shape {tuple(labels.shape)}."
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
    """Captum warns when an input was without gradient and it had to ask for one: that is how it is called here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"captum\..*")
        warnings.filterwarnings("ignore", message=r".*required_grads.*|.*non-full backward hook.*")
        yield
