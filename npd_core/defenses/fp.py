"""Fine-pruning: neurons that are dormant on clean images are cut off from the logits, then all weights are
fine-tuned. Liu et al., "Fine-Pruning", RAID 2018."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from npd_core.config.baselines import FPConfig
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, augmented, captured, fine_tune, last_linear
from npd_core.device import autocast
from npd_core.events import Event, Started
from npd_core.models.normalized import Normalized


@torch.inference_mode()
def head_inputs(net: Normalized, data: ImageSet, device: torch.device, precision: str = "auto") -> Tensor:
    """Return the input of the last linear layer for every image, (N, C) float32 on `device`."""
    parts = []
    with captured([last_linear(net)], inputs=True) as features, autocast(device, precision):
        for x, _ in data.batches(500, device):
            net(x.contiguous(memory_format=torch.channels_last))
            parts.append(features[0].float())
    return torch.cat(parts)


@torch.inference_mode()
def sweep(h: Tensor, y: Tensor, weight: Tensor, bias: Tensor, order: Tensor, step: int) -> Tensor:
    """Count the images classified correctly with the first 0, step, 2 step, ... neurons of `order` cut off.

    Only the head changes from one mask to the next, so each costs one matrix product.

    Args:
        h: inputs of the head, (N, C).
        y: labels, (N,) int64.
        weight, bias: the head, (K, C) and (K,).
        order: neurons in the order they are pruned, (C,) int64.
    Returns:
        (ceil(C / step),) int64, on the device: at least one neuron is always left.
    """
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    right = [
        torch.addmm(bias, h * (rank >= pruned), weight.T).argmax(1).eq(y).sum()
        for pruned in range(0, len(order), step)
    ]
    return torch.stack(right)


def last_passing(correct: list[int], tolerance: float) -> int:
    """Return the index of the last mask before the accuracy has fallen by the share `tolerance` of
    `correct[0]`."""
    for index, count in enumerate(correct):
        if count <= (1 - tolerance) * correct[0]:
            return max(0, index - 1)
    return len(correct) - 1


def fine_prune(
    net: Normalized, clean: ImageSet, cfg: FPConfig, device: torch.device
) -> Generator[Event, None, None]:
    """Prune inputs of the last linear layer, those of the lowest mean activation first, as long as the
    accuracy on held-out clean images allows it; then fine-tune all weights, the pruned ones staying zero.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn. A part of it decides the number of neurons; all of it is used for fine-tuning.
    Yields:
        one epoch for each of `cfg.epochs`; `Finished.details` holds `pruned` (indices), `neurons` (how many
        there were), and `sweep`, the held-out accuracy by the number of pruned neurons.
    Raises:
        ConfigError: fewer than 2 clean images, or a network without a linear layer.
    """
    batches = augmented(clean, cfg, device)
    linear = last_linear(net)
    neurons = linear.in_features
    measured, held = hold_out(clean, cfg.holdout if clean.size >= cfg.holdout_min else 0.0, cfg.seed)
    if held.size == 0:
        held = clean
    with Repair(net, device) as repair:
        yield Started(cfg.epochs, 0, batches.steps, clean.size, str(device))
        with repair.clock:
            step = math.ceil(cfg.step * neurons)
            order = head_inputs(net, measured, device, cfg.precision).mean(0).argsort()
            h, y = head_inputs(net, held, device, cfg.precision), held.labels.to(device)
            bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
            right = sweep(h, y, linear.weight, bias, order, step).tolist()
            pruned = order[: last_passing(right, cfg.tolerance) * step].clone()
            kept = torch.ones(neurons, device=device).index_fill_(0, pruned, 0.0)

            @torch.no_grad()
            def cut() -> None:
                linear.weight.mul_(kept)

            cut()
            repair.keep(-1)
        reason = yield from fine_tune(repair, batches, cfg, epochs=cfg.epochs, after=cut)
        if reason:
            yield repair.failed(reason)
            return
        curve = [[index * step, count / held.size] for index, count in enumerate(right)]
        yield repair.finished(pruned=sorted(pruned.tolist()), neurons=neurons, sweep=curve)
