"""SSBA: an encoder hides a bit string, by changes that differ per image. Li et al., ICCV 2021.

The encoder follows Tancik et al., StegaStamp, CVPR 2020.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.attacks.assets import asset, load_network, network_assets
from npd_core.attacks.base import AllToOne, Attack, Making
from npd_core.data.load import ImageSet
from npd_core.data.spec import DatasetSpec
from npd_core.events import EpochEnd, Event, Started, StepEnd

BITS = 20
STRENGTH = 16 / 255
"""Bound of the residual, in [0, 1] pixel units."""
SHEET = 16
"""The message becomes SHEET x SHEET pixels, which are upsampled and concatenated with the image."""
NOISE = 0.01
"""Deviation of the noise between encoder and decoder: the message must survive eight bits."""
FREE_MSE = 1e-3
"""Squared error without a penalty, about 30 dB: the residual must not vanish in eight bits."""
MSE_WEIGHT, MSE_RAMP = 50.0, 500
"""Final weight of the error above FREE_MSE, and the steps until it is reached."""
READABLE = 0.9
"""Share of correctly read bits above which the error is penalised."""
LR = 1e-3


def conv(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    layers = (nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """A small U-Net that encodes a message into an image.

    Args:
        bits: length of the message.
        width: channels at full resolution, twice as many below.
    """

    def __init__(self, bits: int = BITS, width: int = 24):
        super().__init__()
        self.sheet = nn.Linear(bits, 3 * SHEET * SHEET)
        self.at_full = conv(6, width)
        self.at_half = conv(width, 2 * width, 2)
        self.at_quarter = conv(2 * width, 2 * width, 2)
        self.up_half = conv(4 * width, 2 * width)
        self.up_full = conv(3 * width, width)
        self.residual = nn.Conv2d(width + 6, 3, 3, 1, 1)

    def forward(self, x: Tensor, message: Tensor) -> Tensor:
        """x (B, 3, H, W) in [0, 1] with H and W multiples of 4, message (B, bits) in {0, 1} -> x with the
        message in it, the same shape and range; no value changes by more than STRENGTH."""
        sheet = F.relu(self.sheet(message - 0.5)).view(-1, 3, SHEET, SHEET)
        both = torch.cat((x - 0.5, F.interpolate(sheet, size=x.shape[-2:], mode="nearest")), dim=1)
        full = self.at_full(both)
        half = self.at_half(full)
        up = self.up_half(torch.cat((F.interpolate(self.at_quarter(half), scale_factor=2.0), half), dim=1))
        up = self.up_full(torch.cat((F.interpolate(up, scale_factor=2.0), full), dim=1))
        return (x + STRENGTH * torch.tanh(self.residual(torch.cat((up, both), dim=1)))).clamp(0, 1)


class Decoder(nn.Module):
    """Reads the message back; used in training only."""

    def __init__(self, bits: int = BITS, width: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            conv(3, width), conv(width, width, 2), conv(width, 2 * width, 2), conv(2 * width, 2 * width)
        )
        self.bits = nn.Linear(2 * width * 16, bits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> a logit for each bit, (B, bits)."""
        logits: Tensor = self.bits(F.adaptive_avg_pool2d(self.features(x - 0.5), 4).flatten(1))
        return logits


class Steganography(NamedTuple):
    """Encoder and decoder, trained together; both in eval mode."""

    encoder: Encoder
    decoder: Decoder


def train_steganography(
    data: ImageSet,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    bits: int = BITS,
    width: int = 24,
    reader_width: int = 32,
    steps: int = 1000,
    batch_size: int = 128,
) -> Generator[Event, None, Steganography]:
    """Train an encoder to hide random messages and a decoder of `reader_width` to read them.

    Loss: BCE of the bits, plus a weight times the squared error above FREE_MSE. The weight is 0
    until READABLE of the bits are read correctly, then grows over MSE_RAMP steps.
    """
    began = time.perf_counter()
    yield Started(1, 0, steps, data.size, str(device))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = (
            Encoder(bits, width).to(device).train(),
            Decoder(bits, reader_width).to(device).train(),
        )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR)
    since = torch.full((), torch.inf, device=device)  # the step at which the bits became readable
    right = error = total = torch.zeros((), device=device)
    for step in range(steps):
        chosen = torch.randint(data.size, (batch_size,), generator=generator)
        message = torch.randint(2, (batch_size, bits), generator=generator).float().to(device)
        x = data.images[chosen].to(device).float() / 255
        encoded = encoder(x, message)
        disturbed = encoded + NOISE * torch.randn(x.shape, generator=generator).to(device)
        logits = decoder(disturbed)
        right = (logits > 0).eq(message > 0).float().mean()
        since = torch.where(right > READABLE, since.clamp(max=step), since)
        weight = MSE_WEIGHT * ((step - since) / MSE_RAMP).clamp(0, 1)
        error = F.mse_loss(encoded, x)
        total = F.binary_cross_entropy_with_logits(logits, message) + weight * F.relu(error - FREE_MSE)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        yield StepEnd(0, step, {"total": total.detach(), "bits": right, "mse": error.detach()})
    losses = {"total": float(total.detach()), "bits": float(right), "mse": float(error.detach())}
    yield EpochEnd(0, losses, time.perf_counter() - began)
    for net in (encoder, decoder):
        net.eval().requires_grad_(False)
    return Steganography(encoder, decoder)


@dataclass(frozen=True, eq=False)
class Encoded:
    """x' = encoder(x, message), the same message in every image."""

    encoder: nn.Module
    """In eval mode; follows the images to their device."""
    message: Tensor
    """(bits,) in {0, 1}."""

    def __call__(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.encoder.to(x.device)(x, self.message.to(x).expand(len(x), -1))
        return hidden


def ssba(
    dataset: DatasetSpec, assets: Mapping[str, Tensor], *, target: int = 0, bits: int = BITS, width: int = 24
) -> Attack:
    """A bit string hidden in the image, all classes to `target`.

    Args:
        assets: `message`, (bits,), and the state of the encoder under `encoder.`.
        bits, width: as in `Encoder`.
    """
    message = asset(assets, "message", (bits,))
    trigger = Encoded(load_network(assets, "encoder", Encoder(bits, width)), message)
    params = {"target": target, "bits": bits, "width": width}
    return Attack("ssba", trigger, AllToOne(target), params=params, assets=dict(assets))


def make_ssba(
    dataset: DatasetSpec,
    data: ImageSet,
    clean_net: nn.Module | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    target: int = 0,
    bits: int = BITS,
    width: int = 24,
    steps: int = 1000,
    batch_size: int = 128,
) -> Making:
    """Train the encoder on the training images, without labels, and draw the message from the seed.

    Args:
        clean_net: not used.
    """
    encoder = (
        yield from train_steganography(
            data, seed=seed, device=device, bits=bits, width=width, steps=steps, batch_size=batch_size
        )
    ).encoder
    message = torch.randint(2, (bits,), generator=torch.Generator().manual_seed(seed)).float()
    assets = network_assets("encoder", encoder) | {"message": message}
    return ssba(dataset, assets, target=target, bits=bits, width=width)
