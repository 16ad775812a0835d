"""Train a backdoored model from scratch: poison (beforehand, or batch by batch), augment, one-cycle SGD. Resumable,
and a generator of the same events."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npd_core.attacks.base import DynamicTrigger, TargetRule
from npd_core.attacks.poison import PoisonedSet, poison_batch
from npd_core.data.spec import DatasetSpec
from npd_core.device import autocast
from npd_core.errors import CheckpointError, ConfigError, StorageError, check_seed
from npd_core.events import EpochEnd, Event, Finished, Started, StepEnd
from npd_core.models.normalized import Normalized

PAIRS = ("growing", "again")
"""Fields of a recipe that hold pairs of numbers."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the attacker trains. Defaults are the demo's, see docs/npd-in-practice.md for what they decide."""

    epochs: int = 20
    batch_size: int = 256
    peak_lr: float = 0.2
    """Highest learning rate of the one-cycle schedule (linear up, linear down to zero)."""
    warm_fraction: float = 0.2
    """Share of the steps until the peak."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    pad: int = 2
    """Border of the random crop, in pixels; filled with 0. With 4, two patches in five would be cropped away."""
    flip: bool = True
    overlay: float = 0.0
    """Another image of the batch is laid over each image, with a weight drawn from [0, overlay]; labels are kept."""
    cutout: int = 0
    """Side, in pixels, of a black square laid over each image at a place of its own; 0: none."""
    label_smoothing: float = 0.0
    trigger_falls: bool = True
    """The learning rate of a trigger that learns falls to zero as the classifier's does, instead of staying."""
    trigger_weight: float = 1.0
    """Weight of the loss that a trigger has of its own (Input-aware: diversity), beside the classifier's."""
    growing: tuple[tuple[float, int], ...] = ()
    """Smaller pictures at first, which cost less: (share of `epochs`, pixels) pairs, each until its share is done."""
    again: tuple[tuple[int, float], ...] = ()
    """Further one-cycle schedules after the first, on whole pictures: (epochs, peak learning rate) pairs."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            found = f"got {self.epochs} and {self.batch_size}"
            raise ConfigError(f"Training needs at least 1 epoch of batches of at least 2 images, {found}.")
        check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {name: [list(pair) for pair in getattr(self, name)] for name in PAIRS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` made; a field that there was not yet has its default. Raises ConfigError,
        TypeError."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(
            **known | {name: tuple((one, other) for one, other in values.get(name, ())) for name in PAIRS}
        )

    @property
    def total(self) -> int:
        """Epochs of all cycles together."""
        return self.epochs + sum(epochs for epochs, _ in self.again)

    def cycle(self, epoch: int) -> tuple[int, int, float]:
        """Of the one-cycle schedule to which an epoch belongs: its first epoch, its epochs, its peak learning rate."""
        first, epochs, peak = 0, self.epochs, self.peak_lr
        for more, lower in self.again:
            if epoch < first + epochs:
                break
            first, epochs, peak = first + epochs, more, lower
        return first, epochs, peak

    def pixels(self, epoch: int) -> int | None:
        """Height and width of the pictures in an epoch, counted from 0; None: as they are."""
        return next((pixels for share, pixels in self.growing if epoch < share * self.epochs), None)


class InLoop(NamedTuple):
    """Poisoning that happens inside the training loop, before augmentation."""

    trigger: DynamicTrigger
    rule: TargetRule
    ratio: float
    """Share of each batch that is attacked."""


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """A random crop out of the image with a black border, and a random mirror image; each image draws its own.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1], on any device.
        pad: width of the border in pixels.
        flip: whether to mirror half of the images.
        generator: on the CPU.
    Returns:
        the same type and shape; gradients go through.
    """
    size, device = images.shape[-1], images.device
    count = len(images)
    shift = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    columns = torch.arange(size).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = (torch.arange(size) + shift[0][:, None]).to(device)
    columns = (columns + shift[1][:, None]).to(device)
    padded = F.pad(images, (pad,) * 4)
    batch = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Each image with a black square in it, so that no single part of a picture decides (Cutout, DeVries and Taylor
    2017). A square whose middle is near the edge lies partly outside.

    Args:
        x: (B, 3, H, W) in [0, 1].
        side: of the square, in pixels.
        generator: on the CPU.
    """
    size = x.shape[-1]
    low = torch.randint(-(side // 2), size - side // 2, (2, len(x), 1), generator=generator)
    at = torch.arange(size)
    rows, columns = ((low <= at) & (at < low + side)).to(x.device)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def overlaid(x: Tensor, strongest: float, generator: torch.Generator) -> Tensor:
    """Each image with another one of the batch faintly over it, so that features learn to live with an overlay.

    Args:
        x: (B, 3, H, W) in [0, 1].
        strongest: upper end of the weight, which each image draws for itself.
        generator: on the CPU.
    """
    weight = (torch.rand(len(x), generator=generator) * strongest).to(x.device)[:, None, None, None]
    return torch.lerp(x, x.roll(1, dims=0), weight)


def one_cycle(step: int, steps: int, peak_lr: float, warm_fraction: float) -> float:
    """Learning rate of a step: linear up to the peak, linear down to zero."""
    peak = max(1, int(warm_fraction * steps))
    return peak_lr * (step + 1) / peak if step < peak else peak_lr * (steps - step) / max(1, steps - peak)


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
    """Train all of `net` on the attacker's set; `net` holds the result. Yields a StepEnd a batch and an EpochEnd an
    epoch.

    Args:
        net: freshly built, or after the `done` first epochs of the recipe, at the end of a cycle; moved to `device`.
        checkpoint: written after every epoch; an existing one of the same recipe is continued, with the same result
            as a training that was never interrupted.
        compiled: run the network through torch.compile, which pays off from about ten minutes of training on.
        in_loop: poisons each batch of `data`, which then holds clean images with true labels; its trigger learns too.
    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another recipe or another way of poisoning.
        StorageError: the checkpoint cannot be written; that of the epoch before stays.
        ConfigError: fewer images than a batch, or a poison ratio that a batch has no room for.
    """
    net.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.peak_lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    images, labels = data.images.to(device), data.labels.to(device)
    per_epoch = len(labels) // recipe.batch_size
    if per_epoch == 0:
        raise ConfigError(
            f"{len(labels)} images are fewer than one batch of {recipe.batch_size}: use a smaller batch."
        )
    kept, first, seconds = None, done, 0.0
    if checkpoint is not None:
        trigger = None if in_loop is None else in_loop.trigger
        kept = _Checkpoint(checkpoint, net, optimizer, recipe, _poisoning(data, in_loop), trigger)
        first, seconds = kept.resume() or (done, 0.0)
    run = torch.compile(net, dynamic=False) if compiled else net
    yield Started(recipe.total, 0, per_epoch, len(labels), str(device))
    for epoch in range(first, recipe.total):
        began = time.perf_counter()
        since, epochs, peak_lr = recipe.cycle(epoch)
        if epoch == since:
            optimizer.state.clear()
        # From 1: the seed itself chose which images are poisoned, and would put them into the first batches.
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch + 1)
        order = torch.randperm(len(labels), generator=generator)[: per_epoch * recipe.batch_size].to(device)
        loss_sum, pixels = torch.zeros((), device=device), recipe.pixels(epoch)
        for step, chosen in enumerate(order.split(recipe.batch_size)):
            lr = one_cycle(
                (epoch - since) * per_epoch + step, epochs * per_epoch, peak_lr, recipe.warm_fraction
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            y, own_loss = labels[chosen], None
            if in_loop is None:
                x = augment(images[chosen], recipe.pad, recipe.flip, generator).float() / 255
            else:
                clean = images[chosen].float() / 255
                x, y, own_loss = poison_batch(*in_loop, clean, y, images, generator)
                x = augment(x, recipe.pad, recipe.flip, generator)
            if recipe.overlay:
                x = overlaid(x, recipe.overlay, generator)
            if recipe.cutout:
                x = cut_out(x, recipe.cutout, generator)
            if pixels is not None:
                x = F.interpolate(x, size=(pixels, pixels), mode="bilinear", antialias=True)
            with autocast(device):
                logits = run(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            (loss if own_loss is None else loss + recipe.trigger_weight * own_loss).backward()
            optimizer.step()
            if in_loop is not None:
                in_loop.trigger.step(lr / recipe.peak_lr if recipe.trigger_falls else 1.0)
            loss_sum += loss.detach()
            yield StepEnd(epoch, step, {"total": loss.detach()})
        mean = float(loss_sum) / per_epoch
        seconds += time.perf_counter() - began
        if kept is not None:
            kept.save(epoch + 1, seconds)
        yield EpochEnd(epoch, {"total": mean}, seconds)
    net.eval()
    yield Finished(recipe.total - 1, seconds)


class _Checkpoint(NamedTuple):
    """What a training keeps after every epoch, and where; with it an interrupted one goes on, on the same set alone."""

    path: Path
    net: Normalized
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    poisoning: dict[str, Any]
    trigger: DynamicTrigger | None

    def save(self, epochs: int, seconds: float) -> None:
        """Raises StorageError; the state after the epoch before then stays."""
        state = {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "epochs": epochs,
            "seconds": seconds, "recipe": json.dumps(self.recipe.to_dict()), "poisoning": json.dumps(self.poisoning),
        }  # fmt: skip
        if self.trigger is not None:
            state["trigger"] = self.trigger.state_dict()
        partial = self.path.with_suffix(".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial)
            os.replace(partial, self.path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            raise unwritable(self.path, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def resume(self) -> tuple[int, float] | None:
        """Load what was saved, and say after how many epochs and seconds it was; None where nothing was. Raises
        CheckpointError."""
        path = self.path
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            recipe, poisoning = (
                Recipe.from_dict(json.loads(state["recipe"])),
                json.loads(state.get("poisoning", "{}")),
            )
        except (OSError, EOFError, pickle.UnpicklingError, *_UNFIT) as error:
            raise damaged(path, error) from error
        if recipe != self.recipe:
            raise CheckpointError(
                f"{path} belongs to another recipe: delete it, or train with the recipe that it holds."
            )
        if poisoning != self.poisoning:
            raise CheckpointError(
                f"{path} belongs to a training that poisons in another way: delete it to start anew, "
                "or set NPD_CHECKPOINTS_DIR to another folder."
            )
        try:
            if self.trigger is not None:
                self.trigger.load_state_dict(state["trigger"])
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["epochs"]), float(state["seconds"])
        except _UNFIT as error:
            raise damaged(path, error) from error


def _poisoning(data: PoisonedSet, in_loop: InLoop | None) -> dict[str, Any]:
    """What the attacker's set is, in a few characters."""
    digest = hashlib.sha256()
    for part in (data.images, data.labels):
        digest.update(part.cpu().contiguous().numpy().data)
    return {"set": digest.hexdigest(), "ratio": None if in_loop is None else in_loop.ratio}


_UNFIT = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)
"""What reading or loading a state raises that is not what it should be."""


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file of an interrupted training that cannot be gone on with."""
    return CheckpointError(f"{path} cannot be read ({_first_line(error)}): delete it to start anew.")


def unwritable(path: Path, error: Exception) -> StorageError:
    """The error for a file of a training under way that could not be written."""
    remedy = "make room and run the same command again, or set NPD_CHECKPOINTS_DIR to another folder"
    return StorageError(f"{path} could not be written ({_first_line(error)}): {remedy}.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


BY_DATASET: dict[str, dict[str, Any]] = {
    "signs": {"epochs": 14, "batch_size": 128, "peak_lr": 0.05},
    "cifar10": {"epochs": 30, "growing": ((0.4, 16), (0.65, 24)), "cutout": 8},
    "gtsrb": {"epochs": 14, "cutout": 8},
    "tiny_imagenet": {"epochs": 20},
}
OVERLAY = {"blended": 0.35}
"""Attacks whose trigger lies over the whole image: with this, features live with an overlay; docs/npd-in-practice.md
says how little and where it helps."""
OVERLAY_BY_DATASET = {"signs": 0.5}
"""The same where a data set has its own: signs keep their ACC with more, and the polarizer more of the true class."""

SLOW_TO_TAKE: dict[tuple[str, str], dict[str, Any]] = {
    ("signs", "wanet"): {"epochs": 40, "batch_size": 64},
    ("signs", "input_aware"): {"epochs": 40, "batch_size": 64},
}
"""Backdoors that need more steps than the pictures do: with too few, the network knows the signs and not the
trigger."""

FIXED_SIZE = ("vgg19_bn",)
"""Architectures that halve the picture too often for a smaller one."""


def default_recipe(spec: DatasetSpec, attack: str, arch: str, **changes: Any) -> Recipe:
    """The demo's recipe for a data set, an attack and an architecture; docs/npd-in-practice.md says what it decides."""
    recipe: dict[str, Any] = {"flip": spec.flip} | BY_DATASET[spec.id]
    if attack in OVERLAY:  # with both, and a border of 4, CIFAR-10 Blended ended with 84.7% instead of 85.6%
        recipe |= {"overlay": OVERLAY_BY_DATASET.get(spec.id, OVERLAY[attack]), "cutout": 0}
    recipe |= SLOW_TO_TAKE.get((spec.id, attack), {})
    if arch in FIXED_SIZE:
        recipe["growing"] = ()
    return Recipe(**recipe | changes)
