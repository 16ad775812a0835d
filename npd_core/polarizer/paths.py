"""Which features of any network lie on every path from its images to its logits, and where it can be resumed.

One forward pass tells: autograd's graph records exactly what the logits depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

FILLS = (0.0, 1.0, float("nan"))
"""Values that stand for whatever precedes the cut when a split is checked; none may reach the logits."""


@dataclass(frozen=True)
class Passage:
    """Features that enter or leave one module in a forward pass."""

    module: str
    side: str
    """`before` or `after`."""
    shape: tuple[int, ...]
    every_path: bool
    """Whether the logits depend on the images through these features alone."""


def trace(net: nn.Module, image: Tensor) -> tuple[list[Passage], Any]:
    """Run `net` once with every module watched.

    Args:
        net: on the device of `image`, in eval mode; left as it was. Its parameters must need no gradient.
        image: (B, C, H, W).
    Returns:
        what enters and leaves each module that is called once with one tensor, in the order of the forward
        pass, and the output of the network.
    """
    rows: list[tuple[str, str, tuple[int, ...], Node | None]] = []

    def mark(name: str, side: str, features: Any) -> Any:
        if not isinstance(features, Tensor):
            return features
        own = features.clone() if features.requires_grad else features
        rows.append((name, side, tuple(features.shape), own.grad_fn))
        return own

    def enter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs:
            return (mark(name, "before", args[0]),), kwargs
        rows.append((name, "before", (), None))
        return None

    hooks = []
    for name, module in net.named_modules():
        if name and next(module.parameters(), None) is not None:
            hooks += [
                module.register_forward_pre_hook(
                    lambda _m, args, kwargs, name=name: enter(name, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda _m, _a, out, name=name: mark(name, "after", out)),
            ]
    pixels = image.clone().requires_grad_()
    with torch.enable_grad():
        source = pixels.clone()
        out = net(source)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        known = isinstance(out, Tensor) and torch.equal(out, net(image))
    passed = _on_every_path(out.grad_fn, source.grad_fn) if known else set()
    calls: dict[tuple[str, str], int] = {}
    for name, side, *_ in rows:
        calls[name, side] = calls.get((name, side), 0) + 1
    found: dict[tuple[str, str], Passage] = {}
    for name, side, shape, node in rows:
        alone = node in passed and calls[name, side] == 1
        found.setdefault((name, side), Passage(name, side, shape, alone))
    return [passage for passage in found.values() if passage.shape], out


def _on_every_path(end: Node | None, start: Node | None) -> set[Node | None]:
    """Return the nodes of autograd's graph that every path from `end` back to `start` passes: those for which
    the paths that arrive times the paths that go on are all the paths there are."""
    order: list[Node] = []
    seen: set[Node | None] = {None}
    waiting = [(end, False)]
    while waiting:
        node, followed = waiting.pop()
        if node is not None and followed:
            order.append(node)
        elif node not in seen:
            assert node is not None
            seen.add(node)
            waiting += [(node, True), *((following, False) for following, _ in node.next_functions)]
    going: dict[Node | None, int] = {None: 0}
    for node in order:
        going[node] = int(node is start) + sum(going[following] for following, _ in node.next_functions)
    arriving: dict[Node | None, int] = {end: 1}
    for node in reversed(order):
        for following, _ in node.next_functions:
            arriving[following] = arriving.get(following, 0) + arriving[node]
    total = going[end]
    return {node for node in order if total and arriving[node] * going[node] == total}


class _Reached(Exception):
    """The forward pass has come to the cut."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features


@dataclass(frozen=True)
class Split:
    """A network in two parts, cut in front of one of its modules or behind it.

    The second part is the forward pass of the whole network, in which the modules that end before the cut
    return blank features without being run.
    """

    cut: str
    side: str
    """`before` or `after` the module `cut`."""
    image: tuple[int, int, int]
    blanks: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Output shape of each module that is not run: for each axis its size, fixed and per image."""

    def prefix(self, net: nn.Module, z: Tensor) -> Tensor:
        """Run the part in front: images (B, C, H, W) as `net` takes them -> features at the cut."""

        run = net.get_submodule(self.cut).forward

        def stop(features: Tensor) -> Tensor:
            raise _Reached(features if self.side == "before" else run(features))

        with _replaced(net, {self.cut: stop}):
            try:
                net(z)
            except _Reached as reached:
                return reached.features
        raise RuntimeError(f"{self.cut} was not run.")

    def suffix(self, net: nn.Module, h: Tensor, fill: float = 0.0) -> Tensor:
        """Run the rest: features at the cut -> (B, K) logits. The blank features hold `fill`."""
        count = len(h)

        def blank(shape: Sequence[tuple[int, int]]) -> Callable[..., Tensor]:
            return lambda *_, **__: h.new_full([fixed + each * count for fixed, each in shape], fill)

        run = net.get_submodule(self.cut).forward
        changed: dict[str, Callable[..., Tensor]] = {
            name: blank(shape) for name, shape in self.blanks.items()
        }
        changed[self.cut] = lambda *_: run(h) if self.side == "before" else h
        with _replaced(net, changed):
            logits: Tensor = net(h.new_full((count, *self.image), fill))
        return logits

    @torch.no_grad()
    def holds(self, net: nn.Module) -> bool:
        """Whether both parts together are the whole network, whatever the blank features hold."""
        device = next(net.parameters()).device
        generator = torch.Generator().manual_seed(0)
        try:
            for count in (2, 3):
                z = torch.randn(count, *self.image, generator=generator).to(device)
                whole, h = net(z), self.prefix(net, z)
                parts = [self.suffix(net, h.clone(), fill) for fill in FILLS]
                limit = 1e-5 * float(whole.abs().max())
                if len(h) != count or not all(float((part - whole).abs().max()) <= limit for part in parts):
                    return False
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
            return False
        return True


@contextmanager
def _replaced(net: nn.Module, forwards: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Within this context the named modules run these functions."""
    modules = [net.get_submodule(name) for name in forwards]
    try:
        for module, forward in zip(modules, forwards.values(), strict=True):
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def find_split(net: nn.Module, cuts: Sequence[Passage], image: tuple[int, int, int]) -> Split | None:
    """Return the split at the last of `cuts`, in the order of the forward pass, that is checked to equal the
    whole network; None where none is."""
    for cut in reversed(cuts):
        split = Split(cut.module, cut.side, image, _blanks(net, cut.module, image))
        if split.holds(net):
            return split
    return None


@torch.no_grad()
def _blanks(net: nn.Module, cut: str, image: tuple[int, int, int]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the modules that end before `cut` begins and are called once, the outermost alone, with their
    output shapes."""
    shapes = [_ended(net, cut, torch.zeros(count, *image)) for count in (2, 3)]
    found = {}
    for name in shapes[0].keys() & shapes[1].keys():
        two, three = shapes[0][name], shapes[1][name]
        if len(two) == len(three):
            each = [second - first for first, second in zip(two, three, strict=True)]
            found[name] = tuple((size - 2 * more, more) for size, more in zip(two, each, strict=True))
    return found


def _ended(net: nn.Module, cut: str, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the output shapes for `_blanks`, for a number of images."""
    calls: dict[str, int] = {}
    open_calls: list[dict[str, Any]] = [{}]
    ended: dict[str, Any] = {}

    def enter(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1
        if name == cut:
            for children in open_calls:
                ended.update(children)
        open_calls.append({})

    def leave(name: str, out: Any) -> None:
        open_calls.pop()
        open_calls[-1][name] = out.shape if isinstance(out, Tensor) and out.is_floating_point() else None

    hooks = []
    for name, module in net.named_modules():
        if name:
            hooks += [
                module.register_forward_pre_hook(lambda _m, _a, name=name: enter(name)),
                module.register_forward_hook(lambda _m, _a, out, name=name: leave(name, out)),
            ]
    try:
        net(image.to(next(net.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tuple(shape) for name, shape in ended.items() if shape is not None and calls[name] == 1}
