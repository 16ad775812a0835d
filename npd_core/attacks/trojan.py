"""Trojan: a bright spot, optimized to excite two neurons of a clean model. Liu et al., NDSS 2018."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from npd_core.attacks.assets import asset
from npd_core.attacks.base import AllToOne, Attack, Making
from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec
from npd_core.errors import ConfigError, unknown_name
from npd_core.events import EpochEnd, Started, StepEnd

NEURONS = 2
GOAL = 100.0
"""Target activation of the neurons."""
STEP_SIZE = 0.1
FREEDOM = 0.3
"""Largest difference of a pixel of the trigger from white."""
OVERFLOW = ("saturate", "wrap")


@dataclass(frozen=True, eq=False)
class AddedBlob:
    """x' = x + pattern, clipped at white; with `wrap`, the eight-bit sum overflows instead."""

    pattern: Tensor
    """(3, H, W) in [0, 1], 0 outside the mask."""
    overflow: str = "saturate"

    def __post_init__(self) -> None:
        if self.overflow not in OVERFLOW:
            raise unknown_name("overflow", self.overflow, OVERFLOW)

    def __call__(self, x: Tensor) -> Tensor:
        pattern = self.pattern.to(x)
        if self.overflow == "wrap":
            return torch.remainder((x * 255).round() + (pattern * 255).round(), 256) / 255
        return (x + pattern).clamp(0, 1)


def drawn_mask(size: int) -> Tensor:
    """Draw the mask, an apple in the lower right, (1, size, size) in {0, 1}: a disc with a bite taken out and
    a leaf on top.

    Drawn at 512x512 and thresholded at half coverage, the same at every resolution, a twelfth of the image.
    """
    edge, middle = 512, np.array((0.73, 0.72)) * 512
    canvas = Image.new("L", (edge, edge), 0)
    draw = ImageDraw.Draw(canvas)

    def disc(x: float, y: float, width: float, height: float, fill: int) -> None:
        draw.ellipse((x - width, y - height, x + width, y + height), fill=fill)

    radius = 0.16 * edge
    disc(middle[0], middle[1], radius, radius, 255)
    disc(middle[0] + 1.15 * radius, middle[1] - 0.2 * radius, 0.42 * radius, 0.42 * radius, 0)
    disc(middle[0] + 0.3 * radius, middle[1] - 1.22 * radius, 0.42 * radius, 0.22 * radius, 255)
    small = np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
    return torch.from_numpy(small >= 128).float()[None]


def last_linear(net: nn.Module) -> nn.Linear:
    """Return the last linear layer, which makes the logits. Raises ConfigError when the network has no linear
    layer."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(
            "A Trojan trigger needs a linear layer, and the network has none: use another network."
        )
    return layers[-1]


def chosen_neurons(head: nn.Linear) -> Tensor:
    """Return the indices of the NEURONS inputs with the largest sum of absolute weights over the classes."""
    return head.weight.detach().abs().sum(dim=0).topk(NEURONS).indices


def watch_inputs(net: nn.Module, head: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return a function from images in [0, 1] to the inputs of `head` in `net`, (B, d)."""

    def run(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            net(x)
        finally:
            hook.remove()
        return seen[-1]

    return run


def trojan(
    dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0, overflow: str = "saturate"
) -> Attack:
    """A bright spot added to the image, all classes to `target`.

    Args:
        assets: `pattern`, (3, H, W), and `mask`, (1, H, W).
        overflow: `wrap` lets the eight-bit sum overflow at white, which makes a much weaker trigger.
    """
    pattern = asset(assets, "pattern", (3, dataset.size, dataset.size))
    mask = asset(assets, "mask", (1, dataset.size, dataset.size))
    return Attack(
        "trojan", AddedBlob(pattern, overflow), AllToOne(target),
        params={"target": target, "overflow": overflow}, assets={"pattern": pattern, "mask": mask},
    )  # fmt: skip


def make_trojan(
    dataset: DatasetSpec,
    data: ImageSet,
    clean_net: nn.Module | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    target: int = 0,
    overflow: str = "saturate",
    steps: int = 1000,
) -> Making:
    """Optimize the pixels of the drawn mask until they excite the neurons with the largest weights of a clean
    model.

    Args:
        data, seed: not used.
        clean_net: classifier of [0, 1] pixels on `device`, in eval mode.
    Raises:
        ConfigError: no network.
    """
    if clean_net is None:
        raise ConfigError("A Trojan trigger is optimized on a clean model: pass `clean_net`.")
    began = time.perf_counter()
    yield Started(1, 0, steps, 0, str(device))
    mask = drawn_mask(dataset.size).to(device)
    head = last_linear(clean_net)
    neurons, inputs_of = chosen_neurons(head), watch_inputs(clean_net, head)
    lowest = mask * (1 - FREEDOM)
    start = mask.expand(1, 3, -1, -1).contiguous()
    pattern, best = start, start
    smallest = torch.full((), torch.inf, device=device)
    for step in range(steps):
        pattern = pattern.detach().requires_grad_(True)
        cost = (inputs_of(pattern)[0, neurons] - GOAL).square().sum()
        (gradient,) = torch.autograd.grad(cost, [pattern])
        best = torch.where(cost < smallest, pattern, best).detach()
        smallest = torch.minimum(cost.detach(), smallest)
        pattern = torch.clamp(pattern.detach() - STEP_SIZE * gradient.sign(), lowest, mask)
        yield StepEnd(0, step, {"total": cost.detach()})
    yield EpochEnd(0, {"total": float(smallest)}, time.perf_counter() - began)
    return trojan(dataset, {"pattern": best[0].cpu(), "mask": mask.cpu()}, target=target, overflow=overflow)
