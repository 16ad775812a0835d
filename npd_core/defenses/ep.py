"""Entropy pruning: in a batch with poisoned images, the activations of a backdoor neuron form two clusters,
so their entropy is low. One forward pass, no training. Zheng et al., "Pre-activation Distributions Expose
Backdoor Neurons", NeurIPS 2022."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from npd_core.config.baselines import EPConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, augmented, batch_norms, captured
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import Event, Started
from npd_core.models.normalized import Normalized

STREAM = 0x6570  # "ep": not the order in which an attacker with the same seed chose the images to poison


def channel_entropy(values: Tensor, bin_width: float) -> Tensor:
    """Return the entropy of every channel's histogram, in nats; NaN for a constant channel.

    Each channel is standardised over the images; the bins of all channels start at the smallest value of the
    layer.

    Args:
        values: one number for each image and channel, (B, C).
        bin_width: in standard deviations.
    Returns:
        (C,) float32 on the device.
    """
    values = values.float()
    deviation, mean = torch.std_mean(values, dim=0, correction=0)
    constant = deviation <= 1e-6 * values.abs().amax(0)
    z = torch.where(constant, 0.0, (values - mean) / deviation)
    bins = math.ceil(2 * math.sqrt(len(values)) / bin_width) + 1  # |z| is below sqrt(B)
    lowest = torch.where(constant, torch.inf, z).amin()
    index = ((z - lowest) / bin_width).nan_to_num(0.0, 0.0, 0.0).long().clamp_(0, bins - 1)
    counts = torch.zeros(values.shape[1], bins, device=values.device)
    counts.scatter_add_(1, index.T, torch.ones_like(z).T)
    share = counts / len(values)
    return torch.where(constant, torch.nan, -torch.xlogy(share, share).sum(1))


def outliers(entropy: Tensor, u: float) -> Tensor:
    """Return which channels have an entropy more than `u` standard deviations below the mean of the layer,
    (C,) bool.

    Channels with NaN are left out of the mean and the deviation, and are never outliers.
    """
    valid = ~entropy.isnan()
    count = valid.sum().clamp(min=1)
    mean = torch.where(valid, entropy, 0.0).sum() / count
    deviation = (torch.where(valid, entropy - mean, 0.0).square().sum() / count).sqrt()
    return valid & (entropy < mean - u * deviation)


def entropy_prune(
    net: Normalized, clean: ImageSet, cfg: EPConfig, device: torch.device, *, mixture: ImageSet | None = None
) -> Generator[Event, None, None]:
    """Set scale and shift of the BatchNorm channels to zero if the entropy of their input is an outlier.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn; used only when `cfg.batch` is `clean`.
        mixture: images of the poisoned training set, of which one batch is drawn when `cfg.batch` is
            `mixture`.
    Yields:
        Started, then Finished with the details `pruned` (layer to channel indices, layers without any left
        out), `channels` (how many there are in all), and `batch`.
    Raises:
        ConfigError: `cfg.batch` is `mixture` and none was given; fewer than 2 images.
    """
    if cfg.batch == "mixture" and mixture is None:
        raise ConfigError(
            "Entropy pruning needs images of the poisoned training set: pass them as `mixture`, or set "
            "`batch` to clean."
        )
    data = clean if mixture is None or cfg.batch == "clean" else mixture
    batches = augmented(data, cfg, device)
    batches.generator.manual_seed(cfg.seed + STREAM)
    norms = batch_norms(net)
    with Repair(net, device) as repair:
        yield Started(0, 0, 1, batches.batch_size, str(device))
        with repair.clock, torch.no_grad():
            x, _ = next(batches.shuffled())
            largest = captured(list(norms.values()), inputs=True, read=lambda h: h.amax(dim=(2, 3)))
            with largest as peaks, autocast(device, cfg.precision):
                net(x)
            found = []
            for norm, values in zip(norms.values(), peaks, strict=True):
                low = outliers(channel_entropy(values, cfg.bin_width), cfg.u)
                norm.weight.masked_fill_(low, 0.0)
                norm.bias.masked_fill_(low, 0.0)
                found.append(low)
            pruned = {name: low.nonzero().flatten().tolist() for name, low in zip(norms, found, strict=True)}
        repair.keep(-1)
        yield repair.finished(
            pruned={name: channels for name, channels in pruned.items() if channels},
            channels=sum(norm.num_features for norm in norms.values()),
            batch=cfg.batch,
        )
