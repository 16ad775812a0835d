"""Tensors and networks of triggers: stored in a mapping, and read with their shapes checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from npd_core.errors import ConfigError

Net = TypeVar("Net", bound=nn.Module)


def asset(assets: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """Return the tensor `name` as float32. Raises ConfigError when it is missing or has another shape."""
    if name not in assets:
        raise ConfigError(
            f"This trigger needs {name!r}, which is missing: use a model of the zoo that has it."
        )
    found = assets[name]
    if list(found.shape) != list(shape):
        raise ConfigError(
            f"The trigger's {name!r} must have the shape {list(shape)}, got {list(found.shape)}."
        )
    return found.detach().float()


def network_assets(name: str, net: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network under `<name>.<key>`, on the CPU: weights in float16, statistics in
    float32."""
    stored = {}
    for key, value in net.state_dict().items():
        value = value.detach().to("cpu", torch.float16 if value.ndim > 1 else value.dtype, copy=True)
        stored[f"{name}.{key}"] = value.contiguous()
    return stored


def load_network(assets: Mapping[str, Tensor], name: str, net: Net) -> Net:
    """Load the state that `network_assets` stored into `net`; return it in eval mode and frozen.

    Raises ConfigError when something is missing or does not fit.
    """
    state = {
        key.removeprefix(f"{name}."): value for key, value in assets.items() if key.startswith(f"{name}.")
    }
    if not state:
        raise ConfigError(
            f"This trigger needs the network {name!r}, which is missing: use a model of the zoo that has it."
        )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"The trigger's network {name!r} does not fit: {' '.join(str(error).split())}"
        ) from error
    return net.eval().requires_grad_(False)
