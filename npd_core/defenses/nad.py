"""Attention distillation (NAD): the network learns the attention maps of a fine-tuned copy.

Li et al., ICLR 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.config.baselines import NADConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.common import Repair, Step, augmented, captured, fine_tune
from npd_core.errors import ConfigError
from npd_core.events import Event, Started
from npd_core.models.normalized import Normalized
from npd_core.training.batches import Batches

EPS = 1e-6
"""Added to the norm of an attention map, so that a map of zeros stays zero."""


def attention(features: Tensor, p: float = 2.0) -> Tensor:
    """Return the attention map A(F) = sum_c |F_c|^p, scaled to unit length over the positions of each image.

    Args:
        features: (B, C, H, W).
    Returns:
        (B, H W) float32.
    """
    strength = features.float().abs().pow(p).sum(1).flatten(1)
    return strength / (strength.norm(dim=1, keepdim=True) + EPS)


def attention_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], betas: Sequence[float], p: float
) -> Tensor:
    """Return the sum over the levels of beta_l MSE(A(F_l^S), A(F_l^T)), the mean taken over images and
    positions.

    Args:
        student, teacher: features at each level, (B, C_l, H_l, W_l).
    """
    terms = [
        beta * F.mse_loss(attention(ours, p), attention(theirs, p))
        for ours, theirs, beta in zip(student, teacher, betas, strict=True)
    ]
    return torch.stack(terms).sum()


@torch.no_grad()
def levels(net: Normalized, size: tuple[int, int], count: int) -> list[str]:
    """Return the paths of the last `count` modules that are distilled, the deepest last.

    They are the pooling layers where the network has any, otherwise the last block of each residual stage.
    Modules with an output of a single pixel are skipped, as every attention map is 1 there.

    Args:
        net: in eval mode.
        size: height and width of the images.
    Raises:
        ConfigError: the network has fewer of them.
    """
    pools = [
        name for name, module in net.net.named_modules() if isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    ]
    stages = {name.split(".")[0]: name for name in getattr(net.net, "blocks", ())}
    names = pools or list(stages.values())
    with captured([net.net.get_submodule(name) for name in names]) as features:
        net(torch.zeros(1, 3, *size, device=net.mean.device))
    wide = [name for name, f in zip(names, features, strict=True) if f.shape[2] * f.shape[3] > 1]
    if len(wide) < count:
        found = ", ".join(wide) or "none"
        raise ConfigError(
            f"Attention distillation needs {count} stages with more than one pixel, but found {found}: "
            "use larger images."
        )
    return wide[-count:]


def distill(
    student: Repair, teacher: Normalized, names: Sequence[str], batches: Batches, cfg: NADConfig
) -> Generator[Event, None, str]:
    """Train the student on cross entropy plus attention loss, with one forward pass of each network a batch.

    Args:
        teacher: in eval mode and frozen; not changed.
        names: paths of the levels, as of `levels`.
    Returns:
        Why it failed; empty when all went well.
    """
    ours = [student.net.net.get_submodule(name) for name in names]
    theirs = [teacher.net.get_submodule(name) for name in names]

    def step(x: Tensor, y: Tensor) -> Step:
        with torch.no_grad(), captured(theirs) as targets:
            teacher(x)
        with captured(ours) as features:
            logits = student.net(x).float()
        loss = F.cross_entropy(logits, y)
        apart = attention_loss(features, targets, cfg.betas[: len(names)], cfg.p)
        return Step(logits, {"bn": loss, "attention": apart, "total": loss + apart})

    return (yield from fine_tune(student, batches, cfg, epochs=cfg.epochs, step=step))


def distill_attention(
    net: Normalized, clean: ImageSet, cfg: NADConfig, device: torch.device
) -> Generator[Event, None, None]:
    """Fine-tune a copy, the teacher; then train `net` on the labels and on the attention maps of the teacher.

    Args:
        net: changed in place; in eval mode and frozen afterwards.
        clean: D_bn.
    Yields:
        the teacher's epochs as warm-up, then the student's, with the loss `attention` beside `bn`;
        `Finished.details` holds `levels`, the paths of the distilled modules.
    Raises:
        ConfigError: fewer than 2 clean images, or a network without enough levels.
    """
    batches = augmented(clean, cfg, device)
    with Repair(net, device) as student:
        height, width = clean.images.shape[2:]
        names = levels(net, (height, width), 2 if cfg.levels == "two" else 3)
        yield Started(cfg.epochs, cfg.teacher_epochs, batches.steps, clean.size, str(device))
        first = -cfg.teacher_epochs
        with Repair(copy.deepcopy(net), device) as teacher:
            reason = yield from fine_tune(teacher, batches, cfg, epochs=cfg.teacher_epochs, first=first)
        student.clock = teacher.clock
        if not reason:
            reason = yield from distill(student, teacher.net, names, batches, cfg)
        if reason:
            yield student.failed(reason)
            return
        yield student.finished(levels=names)
