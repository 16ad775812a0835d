"""The architectures: their size, their numbering, and that running the segments is running the network."""

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from npd_core.errors import UnknownNameError
from npd_core.models import MODELS, build_model

CONVOLUTIONS = [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49]
"""Places of VGG19-BN's convolutions among its features, as published."""


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("arch", MODELS)
def test_segments_and_head_are_the_network(arch, size):
    net = build_model(arch, 5, 4).eval().net
    x = torch.rand(2, 3, size, size)
    h = x
    for name in net.segments:
        h = net.get_submodule(name)(h)
    assert torch.equal(net.head(h), net(x))
    assert net(x).shape == (2, 5)


@pytest.mark.parametrize("arch", MODELS)
def test_features_are_left_as_they_were_given(arch):
    """What a segment is given may be a cached feature: no module writes into its input."""
    net = build_model(arch, 5, 4).eval().net
    h = torch.rand(2, 3, 32, 32)
    for name in net.segments:
        kept = h.clone()
        out = net.get_submodule(name)(h)
        assert torch.equal(h, kept), name
        h = out


def test_vgg_features_are_those_of_torchvision():
    torch.manual_seed(0)
    theirs = make_layers(cfgs["E"], batch_norm=True).eval()
    ours = build_model("vgg19_bn", 10, 64).eval().net
    state = theirs.state_dict()
    assert {name: value.shape for name, value in ours.features.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    assert [type(module) for module in ours.features] == [type(module) for module in theirs]
    head = sum(p.numel() for p in ours.linear.parameters())
    assert head == 512 * 10 + 10
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + head
    ours.features.load_state_dict(state)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.features(x), theirs(x))


def test_vgg_s_convolutions_carry_a_bias_and_have_their_published_numbers():
    net = build_model("vgg19_bn", 10, 4).net
    found = {name: module for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert list(found) == [f"features.{place}" for place in CONVOLUTIONS]
    assert all(module.bias is not None for module in found.values())
    assert [module.out_channels for module in found.values()] == [4] * 2 + [8] * 2 + [16] * 4 + [32] * 8


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'vgg19'.*'vgg19_bn'"):
        build_model("vgg19", 10, 4)
