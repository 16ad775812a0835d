"""What several baselines need: batches on the device, a network under repair, fine-tuning, views of a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.config.baselines import DefenseConfig, FineTuneConfig
from npd_core.data.load import ImageSet
from npd_core.device import autocast
from npd_core.errors import ConfigError
from npd_core.evaluation import predict
from npd_core.events import EpochEnd, Event, Failed, Finished, StepEnd
from npd_core.models import load_weights
from npd_core.models.normalized import Normalized
from npd_core.zoo.recipe import augment

COLLAPSE_EPOCHS = 3
"""A fine-tuning has failed when the accuracy stays below half of what it was at the start for this many epochs."""

# --- images


class Batches:
    """Images on the device, in shuffled batches, each image augmented anew every time.

    Args:
        data: at least 2 images.
        augmented: whether crops and mirror images are drawn, as `cfg.pad` and `cfg.flip` say.
    Raises:
        ConfigError: fewer than 2 images.
    """

    def __init__(self, data: ImageSet, cfg: DefenseConfig, device: torch.device, *, augmented: bool = True):
        if data.size < 2:
            raise ConfigError(f"A defense needs at least 2 clean images, got {data.size}.")
        self.data, self.device = data, device
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.pad, self.flip = (cfg.pad, cfg.flip) if augmented else (0, False)
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.batch_size = min(cfg.batch_size, data.size)
        self.steps = len(self._parts(torch.arange(data.size)))

    def _parts(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images with these indices: x (B, 3, H, W) float32 in [0, 1], channels last, and y (B,) int64."""
        chosen = chosen.to(self.device)
        images = self.images[chosen]
        if self.pad or self.flip:
            images = augment(images, self.pad, self.flip, self.generator)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last), self.labels[chosen]

    def shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of x, y. The last batch may be smaller; a single left-over image joins the batch before."""
        for chosen in self._parts(torch.randperm(len(self.labels), generator=self.generator)):
            yield self.take(chosen)


# --- the network


class Repair:
    """A network under repair: its last good state, the epoch of that state, and the seconds of training so far.

    As a context it leaves the network in that state, in eval mode and frozen, whatever way the context ends.

    Args:
        net: changed in place; moved to `device`, channels last, in eval mode and frozen to begin with.
    """

    def __init__(self, net: Normalized, device: torch.device):
        self.net = net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.device = device
        self.seconds = 0.0
        self.keep(-1)

    def keep(self, epoch: int) -> None:
        """Take the network as it now is for the good state, that of `epoch`."""
        self.kept = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.epoch = epoch

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The time spent inside this context is training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def finished(self, **details: object) -> Finished:
        """The event of a good end; `details` are JSON values."""
        return Finished(self.epoch, self.seconds, details=details)

    def failed(self, reason: str) -> Failed:
        """The event of a bad end, for one of the reasons that `fine_tune` returns."""
        return Failed(reason, self.epoch, self.seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        load_weights(self.net, self.kept)
        self.net.eval().requires_grad_(False)
        for param in self.net.parameters():
            param.grad = None


def accuracy(net: nn.Module, data: ImageSet, device: torch.device, precision: str = "auto") -> float:
    """Share of the images classified correctly, in [0, 1]. The network is on `device` and in eval mode."""
    right = predict(net, data.images, device, precision).argmax(1).eq(data.labels.to(device))
    return float(right.float().mean())


def batch_norms(net: Normalized) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm layers with a scale and a shift, by the plain path of the module (`layer4.1.bn2`), in order."""
    return {name: m for name, m in net.net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}


def last_linear(net: Normalized) -> nn.Linear:
    """The layer that makes the logits. Raises ConfigError for a network without a linear layer."""
    linears = [module for module in net.net.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ConfigError("This defense needs a network with a linear layer at its end.")
    return linears[-1]


def _same(features: Tensor) -> Tensor:
    return features


@contextmanager
def taps(
    modules: Sequence[nn.Module], *, inputs: bool = False, read: Callable[[Tensor], Tensor] = _same
) -> Iterator[list[Tensor]]:
    """Within this context a forward pass writes into the list what each of `modules` gives, in their order.

    Args:
        inputs: what each is given instead.
        read: applied at once, so that only its result is held.
    """
    seen = [torch.empty(0)] * len(modules)
    handles = []
    for place, module in enumerate(modules):

        def given(_m: nn.Module, args: tuple[Tensor, ...], place: int = place) -> None:
            seen[place] = read(args[0])

        def gives(_m: nn.Module, _args: object, out: Tensor, place: int = place) -> None:
            seen[place] = read(out)

        handles.append(
            module.register_forward_pre_hook(given) if inputs else module.register_forward_hook(gives)
        )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --- fine-tuning


class Step(NamedTuple):
    """What one batch gives a fine-tuning."""

    logits: Tensor
    """(B, K) float32."""
    losses: dict[str, Tensor]
    """Scalars by name; `total` is the one that is minimised."""


StepFn = Callable[[Tensor, Tensor], Step]
"""Images (B, 3, H, W) in [0, 1] and labels (B,) -> a Step. It runs under autocast, the network in train mode."""


def fine_tune(
    repair: Repair,
    batches: Batches,
    cfg: FineTuneConfig,
    *,
    epochs: int,
    first: int = 0,
    step: StepFn | None = None,
    after: Callable[[], None] | None = None,
) -> Generator[Event, None, str]:
    """Train all weights of `repair.net`, in train mode; the state of every good epoch is kept.

    Args:
        epochs: length of the schedule.
        first: number of the first epoch; negative for a training that comes before the real one.
        step: None: the cross entropy of the batch, called `bn`.
        after: called after every update, without gradients: what must stay true of the weights.
    Yields:
        StepEnd, EpochEnd.
    Returns:
        Why it failed, one sentence; empty when all went well. The network is in eval mode and frozen again.
    """
    net = repair.net

    def plain(x: Tensor, y: Tensor) -> Step:
        logits = net(x).float()
        loss = F.cross_entropy(logits, y)
        return Step(logits, {"bn": loss, "total": loss})

    step = step or plain
    with repair.timed():
        base = accuracy(net, batches.data, repair.device, cfg.precision)
        net.requires_grad_(True)
        optimizer = torch.optim.SGD(net.parameters(), cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
    low = 0
    try:
        for done in range(epochs):
            if cfg.schedule == "cosine":
                optimizer.param_groups[0]["lr"] = cfg.lr * (1 + math.cos(math.pi * done / epochs)) / 2
            net.train()
            sums: dict[str, Tensor] = {}
            correct = torch.zeros((), device=repair.device)
            with repair.timed():
                for number, (x, y) in enumerate(batches.shuffled()):
                    with autocast(repair.device, cfg.precision):
                        logits, losses = step(x, y)
                    optimizer.zero_grad(set_to_none=True)
                    losses["total"].backward()
                    optimizer.step()
                    if after is not None:
                        with torch.no_grad():
                            after()
                    correct += logits.detach().argmax(1).eq(y).sum()
                    shown = {name: value.detach() for name, value in losses.items()}
                    for name, value in shown.items():
                        sums[name] = sums.get(name, torch.zeros_like(value)) + value
                    yield StepEnd(first + done, number, shown)
                means = {name: float(value) / batches.steps for name, value in sums.items()}
                if not all(math.isfinite(value) for value in means.values()):
                    return "The loss is no longer a number: lower the learning rate."
                low = low + 1 if float(correct) / batches.data.size < base / 2 else 0
                if low == COLLAPSE_EPOCHS:
                    return (
                        f"The accuracy on the clean images stayed below half of its start for {low} epochs: "
                        "lower the learning rate."
                    )
                if cfg.schedule == "plateau":
                    plateau.step(means["total"])
                net.eval()
                if low == 0:
                    repair.keep(first + done)
            yield EpochEnd(first + done, means, repair.seconds, low == 0)
        return ""
    finally:
        net.eval().requires_grad_(False)
        for param in net.parameters():
            param.grad = None
