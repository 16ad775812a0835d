"""What several baselines share: a network under repair, fine-tuning, and access to the layers of a
network."""

from __future__ import annotations

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
from npd_core.training.batches import Batches
from npd_core.training.guard import Guard
from npd_core.training.schedules import epoch_schedule
from npd_core.training.steps import LossMeans, Stopwatch, clear_gradients, descend


def augmented(data: ImageSet, cfg: DefenseConfig, device: torch.device) -> Batches:
    """Return clean images as batches, cropped and mirrored as the config says. Raises ConfigError."""
    return Batches(data, cfg.batch_size, device, cfg.seed, pad=cfg.pad, flip=cfg.flip)


# --- the network


class Repair:
    """A network under repair: its last good state, the epoch of that state, and the training time so far.

    As a context it leaves the network in that state, in eval mode and frozen, however the context ends.

    Args:
        net: changed in place; moved to `device`, channels last, in eval mode and frozen to begin with.
    """

    def __init__(self, net: Normalized, device: torch.device):
        self.net = net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.device = device
        self.clock = Stopwatch()
        self.keep(-1)

    def keep(self, epoch: int) -> None:
        """Take the network as it is now as the good state, that of `epoch`."""
        self.kept = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.epoch = epoch

    def finished(self, **details: object) -> Finished:
        """Return the event of a good end; `details` are JSON values."""
        return Finished(self.epoch, self.clock.seconds, details=details)

    def failed(self, reason: str) -> Failed:
        """Return the event of a bad end, for a reason of `Guard`."""
        return Failed(reason, self.epoch, self.clock.seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        load_weights(self.net, self.kept)
        self.net.eval().requires_grad_(False)
        clear_gradients(self.net.parameters())


def accuracy(net: nn.Module, data: ImageSet, device: torch.device, precision: str = "auto") -> float:
    """Return the share of images classified correctly. The network is on `device` and in eval mode."""
    correct = predict(net, data.images, device, precision).argmax(1).eq(data.labels.to(device))
    return float(correct.float().mean())


def batch_norms(net: Normalized) -> dict[str, nn.BatchNorm2d]:
    """Return the BatchNorm layers with a scale and a shift, by module path (`layer4.1.bn2`), in order."""
    return {name: m for name, m in net.net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}


def last_linear(net: Normalized) -> nn.Linear:
    """Return the layer that computes the logits. Raises ConfigError for a network without a linear layer."""
    linears = [module for module in net.net.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ConfigError("This defense needs a network that ends with an `nn.Linear` layer.")
    return linears[-1]


def _unchanged(features: Tensor) -> Tensor:
    return features


@contextmanager
def captured(
    modules: Sequence[nn.Module], *, inputs: bool = False, read: Callable[[Tensor], Tensor] = _unchanged
) -> Iterator[list[Tensor]]:
    """Within this context every forward pass writes the outputs of `modules` into the list, in their order.

    Args:
        inputs: capture what each module is given instead.
        read: applied at once, so that only its result is held.
    """
    features = [torch.empty(0)] * len(modules)
    handles = []
    for index, module in enumerate(modules):

        def before(_m: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
            features[index] = read(args[0])

        def after(_m: nn.Module, _args: object, out: Tensor, index: int = index) -> None:
            features[index] = read(out)

        handles.append(
            module.register_forward_pre_hook(before) if inputs else module.register_forward_hook(after)
        )
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


# --- fine-tuning


class Step(NamedTuple):
    """Result of one batch in a fine-tuning."""

    logits: Tensor
    """(B, K) float32."""
    losses: dict[str, Tensor]
    """Scalars by name; `total` is the one that is minimized."""


StepFn = Callable[[Tensor, Tensor], Step]
"""Images (B, 3, H, W) in [0, 1] and labels (B,) -> a Step. It runs under autocast, the network in train
mode."""


def cross_entropy_step(net: nn.Module) -> StepFn:
    """Return the step of plain fine-tuning: the cross entropy of the batch, called `bn`."""

    def step(x: Tensor, y: Tensor) -> Step:
        logits = net(x).float()
        loss = F.cross_entropy(logits, y)
        return Step(logits, {"bn": loss, "total": loss})

    return step


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
        first: number of the first epoch; negative for a training that comes before the main one.
        step: None: `cross_entropy_step`.
        after: called after every update, without gradients: restores what must stay true of the weights.
    Yields:
        StepEnd, EpochEnd.
    Returns:
        Why it failed, one sentence; empty when all went well. The network is in eval mode and frozen again.
    """
    net, step = repair.net, step or cross_entropy_step(repair.net)
    with repair.clock:
        guard = Guard(accuracy(net, batches.data, repair.device, cfg.precision))
        net.requires_grad_(True)
        optimizer = torch.optim.SGD(net.parameters(), cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay)
        end_epoch = epoch_schedule(cfg.schedule, optimizer, epochs)
    try:
        for epoch in range(first, first + epochs):
            net.train()
            with repair.clock:
                means, correct = LossMeans(), torch.zeros((), device=repair.device)
                for number, (x, y) in enumerate(batches.shuffled()):
                    with autocast(repair.device, cfg.precision):
                        logits, losses = step(x, y)
                    descend(optimizer, losses["total"])
                    if after is not None:
                        with torch.no_grad():
                            after()
                    correct += logits.detach().argmax(1).eq(y).sum()
                    yield StepEnd(epoch, number, means.add(losses))
                found = means.read()
                reason = guard.check(found, float(correct) / len(batches))
                if reason:
                    return reason
                end_epoch(found["total"])
                net.eval()
                if guard.low == 0:
                    repair.keep(epoch)
            yield EpochEnd(epoch, found, repair.clock.seconds, guard.low == 0)
        return ""
    finally:
        net.eval().requires_grad_(False)
        clear_gradients(net.parameters())
