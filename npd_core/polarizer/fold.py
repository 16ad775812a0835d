"""Plain networks out of a polarized one: with the polarizer folded into its layers, or without it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npd_core.models.normalized import Normalized
from npd_core.polarizer.insertion import PolarizedNet


class FoldedConv(nn.Module):
    """A convolution with the polarizer before it folded in: weights W A, and the offset b as a map.

    A zero-padded convolution sees no offset beyond the border, so b cannot become an ordinary bias. It is
    stored as conv(b broadcast over the image), exact for that one input size.
    """

    bias_map: Tensor

    def __init__(self, conv: nn.Conv2d, matrix: Tensor, offset: Tensor, height: int, width: int):
        super().__init__()
        self.conv = _like(conv, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.einsum("ochw,cd->odhw", conv.weight, matrix))
            constant = offset[None, :, None, None].expand(1, -1, height, width)
            bias = F.conv2d(constant, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
        self.register_buffer("bias_map", bias)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.conv(features) + self.bias_map
        return out


def fold(net: PolarizedNet) -> Normalized:
    """Return the network for export, with plain layers only.

    A polarizer before a convolution becomes a FoldedConv; behind one, new weights and a bias; on the residual
    stream, one biased 1x1 convolution in front of the block, and so beside a grouped convolution, which no
    full matrix fits into. Over tokens, the linear layer takes it whole, or one is put in front of the block.
    The logits equal those of `net` up to rounding, for images of the same size.
    """
    plain = copy.deepcopy(net.net)
    path, kind = f"net.{net.info.layer.module}", net.info.layer.kind
    matrix, offset = net.polarizer.folded()
    module: nn.Module = plain.get_submodule(path).module  # type: ignore[assignment]
    plain_conv = type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
    replacement: nn.Module
    if type(module) is nn.Linear:
        replacement = _folded_linear(module, matrix, offset, kind)
    elif kind == "stream" or not plain_conv:
        size = net.info.channels
        linear = nn.Linear(size, size) if net.info.tokens else nn.Conv2d(size, size, 1)
        with torch.no_grad():
            linear.weight.copy_(matrix.view_as(linear.weight))
            linear.bias.copy_(offset)  # type: ignore[union-attr]
        replacement = nn.Sequential(*((module, linear) if kind == "after" else (linear, module)))
    elif kind == "before":
        assert isinstance(module, nn.Conv2d)
        replacement = FoldedConv(module, matrix, offset, net.info.height, net.info.width)
    else:
        assert isinstance(module, nn.Conv2d)
        replacement = _like(module, bias=True)
        with torch.no_grad():
            replacement.weight.copy_(torch.einsum("oc,cihw->oihw", matrix, module.weight))
            bias = offset if module.bias is None else offset + matrix @ module.bias
            replacement.bias.copy_(bias)  # type: ignore[union-attr]
    plain.set_submodule(path, replacement.to(matrix))
    return plain.requires_grad_(False).eval()


def _folded_linear(linear: nn.Linear, matrix: Tensor, offset: Tensor, kind: str) -> nn.Linear:
    """Return one linear layer over tokens for the layer with the polarizer before or after it."""
    folded = nn.Linear(linear.in_features, linear.out_features)
    bias = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias
    with torch.no_grad():
        if kind == "after":
            folded.weight.copy_(matrix @ linear.weight)
            folded.bias.copy_(matrix @ bias + offset)
        else:
            folded.weight.copy_(linear.weight @ matrix)
            folded.bias.copy_(linear.weight @ offset + bias)
    return folded


def _like(conv: nn.Conv2d, bias: bool) -> nn.Conv2d:
    """Return a fresh convolution of the same form."""
    names = ("kernel_size", "stride", "padding", "dilation")
    form: dict[str, Any] = {name: getattr(conv, name) for name in names}
    return nn.Conv2d(conv.in_channels, conv.out_channels, **form, bias=bias)
