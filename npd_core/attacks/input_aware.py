"""Input-aware: two networks make a patch for each image, which is a trigger on that image only.

Nguyen and Tran, NeurIPS 2020.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.attacks.assets import load_network, network_assets
from npd_core.attacks.base import AllToOne, Attack, Making, Stamped
from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec
from npd_core.events import EpochEnd, Started, StepEnd

DENSITY = 0.032
"""Mask values up to this one are not penalised."""
DENSITY_WEIGHT = 100.0
LR, BETAS = 0.01, (0.5, 0.9)
"""Of Adam, for both networks; the learning rate is the highest one."""
EPS = 1e-7


def conv(channels_in: int, channels: int, relu: bool = True) -> nn.Sequential:
    """3x3 convolution, BatchNorm with momentum 0.05, ReLU."""
    layers = [nn.Conv2d(channels_in, channels, 3, 1, 1), nn.BatchNorm2d(channels, momentum=0.05)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Painter(nn.Module):
    """Three stages down, three up: from an image to a pattern or a mask of the same size.

    Args:
        channels_out: 3 for patterns, 1 for masks.
        dataset: gives the normalization of the images.
        width: channels of the first stage; then twice and four times as many.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels_out: int, dataset: DatasetSpec, width: int = 32):
        super().__init__()
        one, two, four = width, 2 * width, 4 * width
        down = [
            conv(3, one),
            conv(one, one),
            conv(one, two),
            conv(two, two),
            conv(two, four),
            conv(four, four),
        ]
        up = [conv(four, four), conv(four, two), conv(two, two), conv(two, one), conv(one, one)]
        self.down = nn.ModuleList(nn.Sequential(*down[i : i + 2], nn.MaxPool2d(2)) for i in (0, 2, 4))
        self.middle = conv(four, four)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), *pair)
            for pair in (up[0:2], up[2:4], (up[4], conv(one, channels_out, relu=False)))
        )
        self.register_buffer("mean", torch.tensor(dataset.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(dataset.std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same shape, zero mean and unit deviation over the data set."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) in [0, 1], H and W multiples of 8 -> (B, channels_out, H, W) in (0, 1)."""
        h = self.normalize(x)
        for stage in (*self.down, self.middle, *self.up):
            h = stage(h)
        return torch.tanh(h) / 2 + 0.5


def sharpened(u: Tensor) -> Tensor:
    """Push values in [0, 1] towards 0 or 1, to make a mask."""
    return torch.tanh(20 * u - 10) / 2 + 0.5


def rms(a: Tensor) -> Tensor:
    """Return the root mean square of each image: (B, C, H, W) -> (B,). Its gradient at 0 is 0."""
    return (a.square().mean(dim=(1, 2, 3)) + EPS**2).sqrt()


def diversity(x1: Tensor, x2: Tensor, made1: Tensor, made2: Tensor) -> Tensor:
    """Return the mean over pairs of the distance of the images divided by the distance of their patterns or
    masks.

    It is small when different images get different patterns.
    """
    return (rms(x1 - x2) / (rms(made1 - made2) + EPS)).mean()


def painted(x: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    """Return x where the mask is 0 and the pattern where it is 1."""
    return x + (pattern - x) * mask


@dataclass(frozen=True, eq=False)
class OwnPatch:
    """Adds to each image its own patch or, with `shift`, that of the image so many places before it."""

    pattern_net: Painter
    mask_net: Painter
    """Both in eval mode; they follow the images to their device."""
    shift: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        source = x.roll(self.shift, dims=0)
        pattern = self.pattern_net.to(x.device)(source)
        return painted(x, pattern, sharpened(self.mask_net.to(x.device)(source)))


class PatternInTraining:
    """The trigger in the training loop: the pattern network learns, the mask network is fixed."""

    cross_ratio = 1

    def __init__(self, attack: Attack, dataset: DatasetSpec, device: torch.device):
        self.dataset, self.params, self.device = dataset, attack.params, device
        width = attack.params["width"]
        self.mask_net = load_network(attack.assets, "mask", Painter(1, dataset, width)).to(device)
        pattern_net = Painter(3, dataset, width)
        load_network(attack.assets, "pattern", pattern_net)
        self.pattern_net = pattern_net.to(device).requires_grad_(True).train()
        self.optimizer = torch.optim.Adam(self.pattern_net.parameters(), lr=LR, betas=BETAS)

    def stamp(self, x: Tensor, x_cross: Tensor, images: Tensor, generator: torch.Generator) -> Stamped:
        """Add their own patches to `x`, those of other images to `x_cross`; the loss is the diversity of the
        patterns."""
        chosen = torch.randint(len(images), (len(x_cross),), generator=generator).to(images.device)
        others = images[chosen].float() / 255
        pattern, pattern_others = self.pattern_net(torch.cat((x, others))).split((len(x), len(others)))
        with torch.no_grad():
            mask, mask_others = sharpened(self.mask_net(torch.cat((x, others)))).split((len(x), len(others)))
        normalize = self.pattern_net.normalize
        return Stamped(
            painted(x, pattern, mask),
            painted(x_cross, pattern_others, mask_others),
            diversity(*map(normalize, (x, others, pattern, pattern_others))),
        )

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = LR * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern_net.state_dict(),
            "mask": self.mask_net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pattern_net.load_state_dict(state["pattern"])
        self.mask_net.load_state_dict(state["mask"])
        self.optimizer.load_state_dict(state["optimizer"])

    def attack(self) -> Attack:
        assets = network_assets("mask", self.mask_net) | network_assets("pattern", self.pattern_net)
        return input_aware(self.dataset, assets, **self.params)


def input_aware(
    dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0, width: int = 32
) -> Attack:
    """A patch made for each image, all classes to `target`.

    Args:
        assets: the states of the two networks under `mask.` and `pattern.`.
        width: of both, as in `Painter`.
    """
    mask_net, pattern_net = Painter(1, dataset, width), Painter(3, dataset, width)
    load_network(assets, "mask", mask_net)
    load_network(assets, "pattern", pattern_net)
    return Attack(
        "input_aware",
        OwnPatch(pattern_net, mask_net),
        AllToOne(target),
        params={"target": target, "width": width},
        assets=dict(assets),
        train_mode="dynamic",
        cross=OwnPatch(pattern_net, mask_net, shift=1),
    )


def make_input_aware(
    dataset: DatasetSpec,
    data: ImageSet,
    clean_net: nn.Module | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    target: int = 0,
    width: int = 32,
    steps: int = 1000,
    batch_size: int = 128,
) -> Making:
    """Train the mask network to small masks that differ per image; the pattern network learns in the training
    loop.

    Args:
        clean_net: not used.
        steps: the learning rate falls to a tenth after 2/5 and again after 4/5 of them.
    """
    began = time.perf_counter()
    yield Started(1, 0, steps, data.size, str(device))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask_net, pattern_net = Painter(1, dataset, width).to(device).train(), Painter(3, dataset, width)
    optimizer = torch.optim.Adam(mask_net.parameters(), lr=LR, betas=BETAS)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * steps // 5, 4 * steps // 5])
    total = density = torch.zeros((), device=device)
    for step in range(steps):
        chosen = torch.randint(data.size, (2 * batch_size,), generator=generator)
        x1, x2 = (data.images[chosen].to(device).float() / 255).chunk(2)
        mask1, mask2 = sharpened(mask_net(x1)), sharpened(mask_net(x2))
        different = diversity(mask_net.normalize(x1), mask_net.normalize(x2), mask1, mask2)
        total = DENSITY_WEIGHT * F.relu(mask1 - DENSITY).mean() + different
        density = mask1.detach().mean()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()
        yield StepEnd(0, step, {"total": total.detach(), "density": density})
    yield EpochEnd(
        0, {"total": float(total.detach()), "density": float(density)}, time.perf_counter() - began
    )
    assets = network_assets("mask", mask_net) | network_assets("pattern", pattern_net)
    return input_aware(dataset, assets, target=target, width=width)
