"""VGG19 with BatchNorm by width. Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))
"""Per stage: channels as a multiple of the width, number of convolutions. Max pooling ends each stage."""


class VGG19BN(nn.Module):
    """Five stages of 2, 2, 4, 4, 4 convolutions with 1, 2, 4, 8, 8 times `width` channels, global average
    pool, linear.

    The features are numbered as in torchvision: convolution, BatchNorm, ReLU and the pooling of a stage, 0 to
    52. `features.46` is the third convolution of the last stage.

    Args:
        num_classes: K.
        width: channels of the first stage; 64 is the paper's.
    """

    segments: tuple[str, ...] = tuple(f"features.{i}" for i in range(3 * 16 + 5))
    """Modules that make the features, in this order; `head` makes the logits."""
    blocks: tuple[str, ...] = ()
    """No shortcut, hence no residual stream."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for multiple, convolutions in STAGES:
            out = width * multiple
            for _ in range(convolutions):
                # No ReLU in place: its input may be a cached feature or be explained by Captum.
                layers += [nn.Conv2d(channels, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def head(self, features: Tensor) -> Tensor:
        """(B, 8 width, h, w) -> (B, K) logits."""
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized, H and W multiples of 32 -> (B, K) logits."""
        return self.head(self.features(x))
