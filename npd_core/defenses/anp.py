"""Adversarial neuron pruning: the channels of the backdoor are those where a small change makes the network
err. Masks trained under adversarial noise on the weights find them. Wu and Wang, "Adversarial Neuron Pruning
Purifies Backdoored Deep Models", NeurIPS 2021."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from npd_core.config.baselines import ANPConfig
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, accuracy, augmented, batch_norms
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Event, Started, StepEnd
from npd_core.metrics import Metrics
from npd_core.models.normalized import Normalized
from npd_core.training.batches import Batches
from npd_core.training.guard import NOT_FINITE, finite
from npd_core.training.steps import LossMeans

EPOCH = 100
"""Updates of the masks that are reported as one epoch."""

Oracle = Callable[[Normalized], Metrics]
"""Measures a network on TEST images, clean and triggered."""


class Neurons:
    """The BatchNorm channels of a network in one row, each a neuron with a scale gamma and a shift beta.

    Args:
        net: its current scales and shifts are the original ones.
    """

    def __init__(self, net: Normalized):
        self.net = net
        self.norms = batch_norms(net)
        if not self.norms:
            raise ConfigError(
                "Adversarial neuron pruning needs a network with BatchNorm layers, and this one has none."
            )
        self.sizes = [norm.num_features for norm in self.norms.values()]
        self.scale = torch.cat([norm.weight.detach() for norm in self.norms.values()])
        self.shift = torch.cat([norm.bias.detach() for norm in self.norms.values()])
        self.statistics = {name: value.clone() for name, value in net.named_buffers()}

    def __len__(self) -> int:
        return len(self.scale)

    def logits(self, x: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """Run the network with scale gamma (m + d_w) and shift beta (1 + d_b). The network itself does not
        change, nor do its running statistics.

        Args:
            x: (B, 3, H, W) in [0, 1].
            mask: m, one number a neuron, (C,).
            noise: d_w and d_b, (2, C); None: zero.
        Returns:
            (B, K).
        """
        scale = self.scale * (mask if noise is None else mask + noise[0])
        shift = self.shift if noise is None else self.shift * (1 + noise[1])
        replaced = dict(self.statistics)  # updated in train mode, instead of those of the network
        for name, weight, bias in zip(
            self.norms, scale.split(self.sizes), shift.split(self.sizes), strict=True
        ):
            replaced |= {f"net.{name}.weight": weight, f"net.{name}.bias": bias}
        z: Tensor = functional_call(self.net, replaced, (x,))
        return z

    @torch.no_grad()
    def prune(self, mask: Tensor, threshold: float | None) -> None:
        """Set gamma to zero where the mask is at most `threshold` (None: nowhere), and to its original value
        elsewhere. The shift beta stays."""
        scale = self.scale if threshold is None else self.scale.masked_fill(mask <= threshold, 0.0)
        for norm, weight in zip(self.norms.values(), scale.split(self.sizes), strict=True):
            norm.weight.copy_(weight)

    def pruned(self, mask: Tensor, threshold: float | None) -> dict[str, list[int]]:
        """Return the channels that `prune` sets to zero by the path of their layer; layers without any are
        left out."""
        if threshold is None:
            return {}
        low = [part.nonzero().flatten().tolist() for part in (mask <= threshold).split(self.sizes)]
        return {name: channels for name, channels in zip(self.norms, low, strict=True) if channels}


LossFn = Callable[[Tensor, Tensor | None], Tensor]
"""Mask (C,) and noise (2, C), None for none -> cross entropy of the batch."""


def worst_noise(loss: LossFn, mask: Tensor, noise: Tensor, *, eps: float, steps: int) -> Tensor:
    """Run sign ascent on the loss by steps of eps / `steps`. The result is not projected, so it can reach 2
    eps.

    Args:
        mask: constant.
        noise: start, (2, C).
    """
    mask = mask.detach()
    for _ in range(steps):
        noise = noise.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(mask, noise), noise)
        noise = noise + eps / steps * gradient.sign()
    return noise.detach()


def largest_passing(levels: list[float], passes: Callable[[float], bool]) -> float | None:
    """Return the largest of the ascending `levels` that passes, by bisection: once one fails, all higher ones
    are assumed to fail. None when none passes."""
    good, bad = -1, len(levels)
    while bad - good > 1:
        middle = (good + bad) // 2
        if passes(levels[middle]):
            good = middle
        else:
            bad = middle
    return levels[good] if good >= 0 else None


class _Selection:
    """The choice of the threshold as the config says."""

    def __init__(
        self, neurons: Neurons, held: ImageSet, cfg: ANPConfig, device: torch.device, oracle: Oracle | None
    ):
        self.neurons, self.held, self.cfg, self.device, self.oracle = neurons, held, cfg, device, oracle
        self.base = self.accuracy() if cfg.select == "holdout" else 0.0

    def accuracy(self) -> float:
        return accuracy(self.neurons.net, self.held, self.device, self.cfg.precision)

    def choose(self, mask: Tensor) -> float | None:
        if self.cfg.select == "fixed":
            return self.cfg.threshold
        return self.by_oracle(mask) if self.cfg.select == "oracle" else self.by_holdout(mask)

    def by_holdout(self, mask: Tensor) -> float | None:
        """Return the largest mask value up to which all channels can be pruned at the tolerated cost on
        held-out clean images."""
        minimum = (1 - self.cfg.tolerance) * self.base - 1e-9

        def passes(threshold: float) -> bool:
            self.neurons.prune(mask, threshold)
            return self.accuracy() >= minimum

        return largest_passing(mask[mask <= self.cfg.highest].unique().tolist(), passes)

    def by_oracle(self, mask: Tensor) -> float | None:
        """Return the threshold of the lowest ASR on test images among those that cost a tolerated ACC."""
        assert self.oracle is not None
        self.neurons.prune(mask, None)
        minimum = (1 - self.cfg.tolerance) * self.oracle(self.neurons.net).acc - 1e-9
        best: tuple[float, float, float] | None = None
        for number in range(math.floor(self.cfg.highest / self.cfg.oracle_step + 1e-9) + 1):
            threshold = number * self.cfg.oracle_step
            self.neurons.prune(mask, threshold)
            measured = self.oracle(self.neurons.net)
            found = (measured.asr, -measured.acc, threshold)
            if measured.acc >= minimum and (best is None or found < best):
                best = found
        return None if best is None else best[2]


def prune_sensitive(
    net: Normalized, clean: ImageSet, cfg: ANPConfig, device: torch.device, *, oracle: Oracle | None = None
) -> Generator[Event, None, None]:
    """Train a mask for every BatchNorm channel under adversarial noise, then set the scale of those with
    small masks to zero in the original network. Meanwhile BatchNorm uses the statistics of the batch.

    After every epoch of EPOCH updates the network is pruned by the masks so far, except under `oracle`, which
    chooses once, at the end.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn. Under `holdout` a part of it decides the threshold and the rest trains the masks.
        oracle: used only when `cfg.select` is `oracle`.
    Yields:
        losses `bn` without noise, `noisy` with it, and `total`. `Finished.details` holds `select`,
        `threshold` (None: nothing could be pruned), `pruned` (layer to channel indices), `channels` (how many
        there are in all), and `masks`, a histogram of them over ten bins of [0, 1].
    Raises:
        ConfigError: `cfg.select` is `oracle` and none was given; fewer than 2 images; a network without
            BatchNorm.
    """
    if cfg.select == "oracle" and oracle is None:
        raise ConfigError(
            "Choosing the threshold by an oracle needs test images: pass a function that measures on them as "
            "`oracle`, or set `select` to holdout or fixed."
        )
    rest, held = hold_out(clean, cfg.holdout if cfg.select == "holdout" else 0.0, cfg.seed)
    batches = augmented(rest, cfg, device)
    with Repair(net, device) as repair:
        neurons = Neurons(net)
        epochs = math.ceil(cfg.iterations / EPOCH)
        yield Started(epochs, 0, min(EPOCH, cfg.iterations), clean.size, str(device))
        with repair.clock:
            selection = _Selection(neurons, held if held.size else rest, cfg, device, oracle)
            mask = torch.ones(len(neurons), device=device, requires_grad=True)
            optimizer = torch.optim.SGD([mask], cfg.lr, cfg.momentum)
        threshold: float | None = None
        for epoch in range(epochs):
            means = LossMeans()
            steps = min(EPOCH, cfg.iterations - epoch * EPOCH)
            net.train()
            with repair.clock:
                for step in range(steps):
                    yield StepEnd(epoch, step, means.add(mask_step(neurons, batches, mask, optimizer, cfg)))
                losses = means.read()
                net.eval()
                chosen = finite(losses) and (cfg.select != "oracle" or epoch == epochs - 1)
                if chosen:
                    threshold = selection.choose(mask.detach())
                    neurons.prune(mask.detach(), threshold)
                    repair.keep(epoch)
            if not finite(losses):
                yield repair.failed(f"{NOT_FINITE}: lower `lr` or `eps`.")
                return
            yield EpochEnd(epoch, losses, repair.clock.seconds, chosen)
        found = mask.detach()
        tenths = torch.histc(found.float().cpu(), 10, 0, 1).int().tolist()
        details = {"select": cfg.select, "threshold": threshold, "pruned": neurons.pruned(found, threshold)}
        yield repair.finished(**details, channels=len(neurons), masks=tenths)


def mask_step(
    neurons: Neurons, batches: Batches, mask: Tensor, optimizer: torch.optim.Optimizer, cfg: ANPConfig
) -> dict[str, Tensor]:
    """Update the masks on a batch drawn with replacement: noise against the network, then masks against the
    noise.

    Args:
        mask: leaf, (C,); afterwards clipped to [0, 1].
    Returns:
        losses `bn`, `noisy` and `total`, detached.
    """
    draw, device = batches.generator, batches.device
    x, y = batches.take(torch.randint(len(batches.labels), (batches.batch_size,), generator=draw))

    def loss(mask: Tensor, noise: Tensor | None) -> Tensor:
        with autocast(device, cfg.precision):
            z = neurons.logits(x, mask, noise)
        return F.cross_entropy(z.float(), y)

    noise = (cfg.eps * (2 * torch.rand(2, len(neurons), generator=draw) - 1)).to(device)
    noise = worst_noise(loss, mask, noise, eps=cfg.eps, steps=cfg.noise_steps)
    terms = {"bn": loss(mask, None), "noisy": loss(mask, noise)}
    terms["total"] = cfg.alpha * terms["bn"] + (1 - cfg.alpha) * terms["noisy"]
    (mask.grad,) = torch.autograd.grad(terms["total"], mask)
    optimizer.step()
    with torch.no_grad():
        mask.clamp_(0, 1)
    return {name: value.detach() for name, value in terms.items()}
