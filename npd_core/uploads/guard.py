"""A bound on what a network from a file may make while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from npd_core.errors import CheckpointError

MAX_NUMBERS = 16_000_000
"""Numbers of one feature of one image: 64 channels of 500 x 500 pixels."""
NEVER_LARGER = (
    "batch_norm",
    "relu",
    "gelu",
    "layer_norm",
    "softmax",
    "detach",
    "view",
    "clone",
    "convolution_backward",
)
"""Operations that make nothing larger than what they are given."""


class Bounded(TorchDispatchMode):
    """Within it, an operation whose result would have more than MAX_NUMBERS an image is refused before it
    runs.

    Shapes are computed on the meta device, which allocates nothing. The first dimension is taken for the
    batch.
    """

    def __init__(self, batch: int = 1) -> None:
        super().__init__()
        self.most = MAX_NUMBERS * batch

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not any(word in str(func) for word in NEVER_LARGER):
            self._check(func, args, given)
        return func(*args, **given)

    def _check(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        def empty(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return torch.device("meta") if isinstance(value, torch.device) else value

        try:
            made = func(*tree_map(empty, tuple(args)), **tree_map(empty, kwargs))
        except (
            NotImplementedError,
            RuntimeError,
        ):  # its shape depends on the numbers, of which there are few
            return
        largest = max((value.numel() for value in tree_leaves(made) if isinstance(value, Tensor)), default=0)
        if largest > self.most:
            raise CheckpointError(
                f"The network makes {largest:,} numbers of one image in one step, the limit is "
                f"{MAX_NUMBERS:,}: choose "
                "a smaller image size, or upload a smaller network."
            )
