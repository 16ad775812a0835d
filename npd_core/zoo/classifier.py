"""Train a classifier on poisoned images from scratch, as a generator of events. Resumable after every
epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from npd_core.attacks.base import DynamicTrigger, TargetRule
from npd_core.attacks.poison import PoisonedSet, poison_batch
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Event, Finished, Started, StepEnd
from npd_core.models.normalized import Normalized
from npd_core.training.augment import augment, cut_out, overlaid
from npd_core.training.batches import Batches
from npd_core.training.schedules import one_cycle, step_schedule
from npd_core.training.steps import LossMeans, Stopwatch, descend
from npd_core.zoo.checkpoint import Checkpoint, describe_poisoning
from npd_core.zoo.recipe import Recipe


class InLoop(NamedTuple):
    """Poisoning inside the training loop, before augmentation."""

    trigger: DynamicTrigger
    rule: TargetRule
    ratio: float
    """Share of each batch that is poisoned."""


def train_classifier(
    net: Normalized,
    data: PoisonedSet,
    recipe: Recipe,
    device: torch.device,
    checkpoint: Path | None = None,
    compiled: bool = False,
    in_loop: InLoop | None = None,
    done: int = 0,
) -> Iterator[Event]:
    """Train all of `net` on the attacker's set. Yields a StepEnd a batch and an EpochEnd an epoch.

    Args:
        net: freshly built, or after the `done` first epochs of the recipe, at the end of a cycle; moved to
            `device`.
        checkpoint: written after every epoch; an existing one of the same recipe is continued, with the same
            result as a training that was never interrupted.
        compiled: run the network through torch.compile, which pays off after about ten minutes of training.
        in_loop: poisons each batch of `data`, which then holds clean images with true labels. Its trigger may
            be trained too.
    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another recipe or another training set.
        StorageError: the checkpoint cannot be written; that of the epoch before stays.
        ConfigError: fewer images than a batch, or a poison ratio that does not fit the batch size.
    """
    images = ImageSet(data.images, data.labels)
    per_epoch = images.size // recipe.batch_size
    if per_epoch == 0:
        reason = f"{images.size} images are fewer than one batch of {recipe.batch_size}: use a smaller batch."
        raise ConfigError(reason)
    batches = Batches(images, recipe.batch_size, device, recipe.seed, pad=recipe.pad, flip=recipe.flip)
    net.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.peak_lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    clock, kept = Stopwatch(), None
    if checkpoint is not None:
        trigger, ratio = (None, None) if in_loop is None else (in_loop.trigger, in_loop.ratio)
        kept = Checkpoint(checkpoint, net, optimizer, recipe, describe_poisoning(data, ratio), trigger)
        done, clock.seconds = kept.resume() or (done, 0.0)
    run = torch.compile(net, dynamic=False) if compiled else net
    yield Started(recipe.total, 0, per_epoch, images.size, str(device))
    for epoch in range(done, recipe.total):
        with clock:
            losses = yield from _epoch(run, batches, recipe, optimizer, epoch, in_loop)
        if kept is not None:
            kept.save(epoch + 1, clock.seconds)
        yield EpochEnd(epoch, losses, clock.seconds)
    net.eval()
    yield Finished(recipe.total - 1, clock.seconds)


def _epoch(
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    recipe: Recipe,
    optimizer: Optimizer,
    epoch: int,
    in_loop: InLoop | None,
) -> Generator[Event, None, dict[str, float]]:
    """Train for one epoch; returns the means of the losses."""
    first, epochs, peak_lr = recipe.cycle(epoch)
    if epoch == first:
        optimizer.state.clear()
    # From 1: the seed itself chose which images are poisoned, and would put them into the first batches.
    batches.generator.manual_seed(recipe.seed * 100_003 + epoch + 1)
    order = batches.order(drop_last=True)

    def rate(step: int) -> float:
        return one_cycle(step, epochs * len(order), peak_lr, recipe.warm_fraction)

    schedule = step_schedule(optimizer, rate, (epoch - first) * len(order))
    means = LossMeans()
    for step, chosen in enumerate(order):
        x, y, trigger_loss = _batch(batches, chosen, recipe, epoch, in_loop)
        with autocast(batches.device):
            logits = run(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
        descend(optimizer, loss if trigger_loss is None else loss + recipe.trigger_weight * trigger_loss)
        if in_loop is not None:
            lr = optimizer.param_groups[0]["lr"]
            in_loop.trigger.step(lr / recipe.peak_lr if recipe.trigger_falls else 1.0)
        schedule.step()
        yield StepEnd(epoch, step, means.add({"total": loss}))
    return means.read()


def _batch(
    batches: Batches, chosen: Tensor, recipe: Recipe, epoch: int, in_loop: InLoop | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return augmented images, their labels, and the loss of a trigger that is trained too."""
    generator, trigger_loss, pixels = batches.generator, None, recipe.pixels(epoch)
    if in_loop is None:
        x, y = batches.take(chosen)
    else:
        x, y = batches.x(chosen).contiguous(), batches.y(chosen)
        x, y, trigger_loss = poison_batch(*in_loop, x, y, batches.images, generator)
        x = augment(x, recipe.pad, recipe.flip, generator)
    if recipe.overlay:
        x = overlaid(x, recipe.overlay, generator)
    if recipe.cutout:
        x = cut_out(x, recipe.cutout, generator)
    if pixels is not None:
        x = F.interpolate(x, size=(pixels, pixels), mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last), y, trigger_loss
