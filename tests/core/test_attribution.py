"""Attribution against models whose answer is known: linear ones, and a small network for the axioms."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from npd_core.attribution import (
    METHODS,
    attribute,
    gradcam_layer,
    polarizer_attribution,
    shared_scale,
    stand_in,
)
from npd_core.errors import ConfigError, UnknownNameError

SIDE = 10


class Linear(nn.Module):
    """logits_k = sum(weights_k * x)."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.weights = nn.Parameter(
            torch.randn(classes, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weights)


class Small(nn.Module):
    """Two convolutions with a polarizer between them."""

    def __init__(self, polarizer: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.polarizer = polarizer
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.polarizer(torch.tanh(self.conv1(x)))
        return self.fc(torch.nn.functional.softplus(self.conv2(features)).mean(dim=(2, 3)))


class Scale(nn.Module):
    """Multiplies each channel by a factor."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors).view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factors


class Breaks(nn.Module):
    """Fails in its last layer, when every hook is in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x)
        raise RuntimeError("broken on purpose")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Small(Scale([1.0, 1.0, 0.0, 1.0, 0.5, 1.0])).eval().requires_grad_(False)


def hooks(net: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()
    )


def test_integrated_gradients_of_a_linear_model_is_weights_times_input(images: Tensor) -> None:
    net, target = Linear(), torch.tensor([0, 2, 1])
    found = attribute(net, images, target, "integrated_gradients", baseline=0.0)
    expected = (net.weights[target] * images).sum(dim=1).detach()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_default_reference_is_gray(images: Tensor) -> None:
    net = Linear()
    found = attribute(net, images, 1, "integrated_gradients")
    torch.testing.assert_close(found, (net.weights[1] * (images - 0.5)).sum(1).detach(), atol=1e-5, rtol=1e-4)


def test_saliency_of_a_linear_model_is_its_weights_sign_included(images: Tensor) -> None:
    net = Linear()
    found = attribute(net, images, 2, "saliency")
    torch.testing.assert_close(found, net.weights[2].sum(0).detach().expand(3, -1, -1))
    assert (found < 0).any()


def test_occlusion_of_a_linear_model_is_the_window_mean_of_weights_times_input(images: Tensor) -> None:
    net = Linear()
    found = attribute(net, images, 0, "occlusion", baseline=0.0)
    windows = nn.functional.unfold((net.weights[0] * images).sum(1, keepdim=True), 2).sum(1).detach()
    windows = windows.view(3, 1, SIDE - 1, SIDE - 1)
    counts = nn.functional.conv_transpose2d(torch.ones_like(windows), torch.ones(1, 1, 2, 2))
    spread = nn.functional.conv_transpose2d(windows, torch.ones(1, 1, 2, 2)) / counts
    torch.testing.assert_close(
        found, spread[:, 0], atol=1e-4, rtol=1e-4
    )  # side 10: windows of 2x2, moved by 1


def test_gradient_shap_of_a_linear_model_is_unbiased(images: Tensor) -> None:
    """Mean over draws of w * (x - reference), references 0, 0.5, 1: w * (x - 0.5) up to which ones were
    drawn."""
    net = Linear()
    found = attribute(net, images, 1, "gradient_shap")
    weights = net.weights[1].sum(0).detach()
    drift = (
        found - (net.weights[1] * (images - 0.5)).sum(1).detach()
    ) / weights  # one constant for each image
    assert drift.abs().max() < 0.2
    torch.testing.assert_close(
        drift, drift.mean(dim=(1, 2), keepdim=True).expand_as(drift), atol=1e-3, rtol=1e-3
    )


def test_integrated_gradients_is_complete(small: Small, images: Tensor) -> None:
    """The map sums to F(x) - F(reference)."""
    target = torch.tensor([0, 1, 3])
    found = attribute(small, images, target, "integrated_gradients", steps=64)
    rows = torch.arange(3)
    gain = small(images)[rows, target] - small(torch.full_like(images, 0.5))[rows, target]
    torch.testing.assert_close(found.sum(dim=(1, 2)), gain, atol=1e-4, rtol=1e-3)


def test_gradcam_of_mean_pooled_features_is_the_class_weight_times_the_map(images: Tensor) -> None:
    """With logits = fc(mean(conv(x))), the gradient of a feature map is its weight over the number of
    positions."""
    conv, fc = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Linear(5, 4)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc).eval()
    found = attribute(net, images, 2, "layer_gradcam", layer="0")
    features = conv(images)
    coarse = (fc.weight[2].view(1, -1, 1, 1) * features).sum(1, keepdim=True) / features[0, 0].numel()
    expected = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-4)
    assert (found < 0).any(), "signed: what speaks against the class is kept"


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_signed_float32_and_the_network_is_left_as_it_was(
    method: str, small: Small, images: Tensor
) -> None:
    small.train()
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    given = images.clone()
    found = attribute(small, given, 1, method)
    assert found.shape == (3, SIDE, SIDE)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.isfinite().all()
    assert hooks(small) == 0
    assert small.training
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
    assert torch.equal(given, images)
    assert not given.requires_grad
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
def test_same_question_same_answer(method: str, small: Small, images: Tensor) -> None:
    first, second = (attribute(small, images, 1, method) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_no_hook_is_left_after_an_exception(method: str, images: Tensor) -> None:
    net = Breaks()
    with pytest.raises(RuntimeError, match="on purpose"):
        attribute(net, images, 0, method)
    assert hooks(net) == 0


def test_one_target_for_each_image(small: Small, images: Tensor) -> None:
    together = attribute(small, images, torch.tensor([0, 1, 2]), "integrated_gradients")
    alone = torch.cat([attribute(small, images[i : i + 1], i, "integrated_gradients") for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)


def test_works_where_gradients_are_off(small: Small, images: Tensor) -> None:
    with torch.no_grad():
        assert attribute(small, images, 0, "saliency").abs().sum() > 0


def test_bad_questions_are_answered_in_one_sentence(small: Small, images: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"'saliancy'.*'saliency'"):
        attribute(small, images, 0, "saliancy")
    with pytest.raises(UnknownNameError, match=r"'conv3'.*'conv2'"):
        attribute(small, images, 0, "layer_gradcam", layer="conv3")
    with pytest.raises(ConfigError, match=r"layer_gradcam.*saliency"):
        attribute(small, images, 0, "saliency", layer="conv2")
    with pytest.raises(ConfigError, match=r"\(B, 3, H, W\)"):
        attribute(small, images[0], 0, "saliency")
    with pytest.raises(ConfigError, match=r"3 images.*\(2,\)"):
        attribute(small, images, torch.tensor([0, 1]), "saliency")


def test_shared_scale() -> None:
    one, two = torch.full((4, 4), -2.0), torch.full((4, 4), 1.0)
    assert shared_scale(one, two) == pytest.approx(2.0)
    assert shared_scale(torch.zeros(3, 3)) == 1.0
    assert shared_scale() == 1.0
    spike = torch.zeros(1000)
    spike[0] = 5.0
    assert shared_scale(spike) == 5.0, "an almost empty map keeps its peak as the scale"


def test_stand_in_shares_weights_but_not_hooks(small: Small, images: Tensor) -> None:
    copy = stand_in(small)
    assert all(a is b for a, b in zip(copy.parameters(), small.parameters(), strict=True))
    copy.register_forward_hook(lambda *_: None)
    assert hooks(small) == 0
    assert torch.equal(copy(images), small(images))


def test_gradcam_layer_is_the_last_block_and_never_the_polarizer(small: Small) -> None:
    assert gradcam_layer(small) == "conv2"
    staged = nn.Module()
    for stage in (1, 2):
        staged.add_module(
            f"layer{stage}", nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Conv2d(3, 3, 3)))
        )
    assert gradcam_layer(staged) == "layer2.1"
    with pytest.raises(UnknownNameError):
        gradcam_layer(nn.Linear(2, 2))


def test_polarizer_attribution_is_complete_and_blames_only_changed_channels(
    small: Small, images: Tensor
) -> None:
    found = polarizer_attribution(small, images, 2, steps=32)
    open_net = Small(nn.Identity())
    open_net.load_state_dict(small.state_dict(), strict=False)
    open_net.eval()
    with torch.no_grad():
        without, within = open_net(images)[:, 2].mean(), small(images)[:, 2].mean()
        features = torch.tanh(small.conv1(images))
    assert found.logit_before == pytest.approx(float(without), abs=1e-5)
    assert found.logit_after == pytest.approx(float(within), abs=1e-5)
    assert float(found.suppressed.sum()) == pytest.approx(float(without - within), abs=1e-4)
    torch.testing.assert_close(found.before - found.after, found.suppressed)
    unchanged = torch.tensor([0, 1, 3, 5])
    assert found.suppressed[unchanged].abs().max() == 0
    assert found.suppressed[[2, 4]].abs().min() > 0
    assert float(found.after[2]) == pytest.approx(0.0, abs=1e-6), (
        "a channel set to zero contributes nothing after"
    )
    torch.testing.assert_close(found.activation_before, features.abs().mean(dim=(0, 2, 3)))
    expected = found.activation_before * torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 1.0])
    torch.testing.assert_close(found.activation_after, expected)
    assert hooks(small) == 0


def test_polarizer_attribution_follows_the_backdoored_prediction_by_default(
    small: Small, images: Tensor
) -> None:
    open_net = Small(nn.Identity())
    open_net.load_state_dict(small.state_dict(), strict=False)
    with torch.no_grad():
        expected = open_net.eval()(images).argmax(1)
    assert torch.equal(polarizer_attribution(small, images).target, expected)


@pytest.mark.slow
def test_four_pictures_take_well_under_a_second() -> None:
    from npd_core.models import build_model

    net = build_model("preact_resnet18", 12, 32, (0.5,) * 3, (0.25,) * 3).eval().requires_grad_(False)
    x = torch.rand(4, 3, 32, 32)
    attribute(net, x, 0, "saliency")
    start = time.perf_counter()
    attribute(net, x, 0, "integrated_gradients")
    assert time.perf_counter() - start < 5.0  # generous: other work may share the machine
