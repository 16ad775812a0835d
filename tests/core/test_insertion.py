"""The polarizer starts as the identity at every layer, and the rest of the network never changes."""

import pytest
import torch
import torchvision
from torch import nn

from npd_core.config.npd import NPDConfig
from npd_core.config.presets import PAPER_LAYERS, default_layer
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.evaluation import predict
from npd_core.events import Finished
from npd_core.models import build_model
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import (
    InsertionLayer,
    PolarizedNet,
    default_insertion_layer,
    find_layer,
    insertion_layers,
)
from npd_core.polarizer.layer import NeuralPolarizer
from npd_core.polarizer.training import train_polarizer


def lively_network(arch="preact_resnet18", width=4, classes=5):
    """A network whose BatchNorms hold statistics of their own, so that a lost one would show."""
    torch.manual_seed(1)
    net = build_model(arch, classes, width, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


NET = lively_network()
LAYERS = [info.name for info in insertion_layers(NET)]
VGG = lively_network("vgg19_bn")
ALL = [(net, info.name) for net in (NET, VGG) for info in insertion_layers(net)]


def test_every_convolution_has_a_layer_before_and_after_it():
    convolutions = [name for name, module in NET.net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 20
    assert {name for name in LAYERS if ":" not in name} == set(convolutions)
    assert {name for name in LAYERS if name.startswith("after:")} == {
        f"after:{name}" for name in convolutions
    }
    assert [name for name in LAYERS if name.startswith("stream:")] == [
        f"stream:layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert len(LAYERS) == len(set(LAYERS)) == 48


def test_layers_come_in_forward_order_with_their_shapes():
    info = {i.name: (i.channels, i.height, i.width) for i in insertion_layers(NET)}
    assert LAYERS[0] == "conv1"
    assert LAYERS.index("layer2.0.conv1") < LAYERS.index("layer2.0.conv2") < LAYERS.index("layer3.0.conv1")
    assert info["conv1"] == (3, 32, 32)
    assert info["after:layer2.0.conv1"] == (8, 16, 16)
    assert info["layer4.1.conv1"] == info["stream:layer4.1"] == (32, 4, 4)


def test_sixty_four_pixel_images_have_maps_twice_as_large():
    assert find_layer(NET, "layer4.1.conv1", size=64).height == 8


def test_the_seventeen_layers_of_figure_3_are_the_main_path_convolutions():
    main = [n for n in LAYERS if n.startswith("after:") and "shortcut" not in n]
    assert len(main) == 17
    assert main[15] == "after:layer4.1.conv1"


def test_the_default_and_the_paper_s_layer_are_layers_of_the_network():
    main = [n for n in LAYERS if n.startswith("layer4") and "shortcut" not in n]
    assert PAPER_LAYERS["preact_resnet18"] == main[2]
    assert default_layer("preact_resnet18") in LAYERS


def test_a_plain_network_offers_its_sixteen_convolutions_and_no_stream():
    layers = [info.name for info in insertion_layers(VGG)]
    convolutions = [name for name, module in VGG.net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 16
    assert layers == [name for conv in convolutions for name in (conv, f"after:{conv}")]
    assert default_layer("vgg19_bn") == PAPER_LAYERS["vgg19_bn"] == convolutions[14]
    for size, side in ((32, 2), (64, 4)):
        info = find_layer(VGG, "features.46", size)
        assert (info.channels, info.height, info.width) == (32, side, side)


@pytest.mark.parametrize(("backdoored", "layer"), ALL, ids=[layer for _, layer in ALL])
def test_identity_at_start_at_every_layer(backdoored, layer):
    x = torch.rand(2, 3, 32, 32)
    net = PolarizedNet(backdoored, layer)
    expected = backdoored(x)
    assert (net(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    with net.removed():
        assert torch.equal(net(x), expected)
    with torch.no_grad():
        net.polarizer.conv.weight.add_(0.3)
    given = net.prefix(x)
    kept = given.clone()
    torch.testing.assert_close(net.suffix(given), net.net(x))
    assert torch.equal(given, kept), "the suffix must not write into what may be cached"


@pytest.mark.parametrize("layer", [layer for net, layer in ALL if net is VGG])
def test_the_prefix_of_a_plain_network_ends_right_before_the_layer(layer):
    net = PolarizedNet(VGG, layer)
    x = torch.rand(2, 3, 32, 32)
    index = int(layer.rpartition(".")[2])
    assert torch.equal(net.prefix(x), VGG.net.features[:index](VGG.normalize(x)))


@pytest.mark.parametrize(("backdoored", "layer"), ALL, ids=[layer for _, layer in ALL])
def test_only_theta_trains_and_gradients_reach_it(backdoored, layer):
    net = PolarizedNet(backdoored, layer)
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert all("polarizer" in name for name in trainable)
    assert len({name.split("polarizer.")[1] for name in trainable}) == 3
    net(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.polarizer.parameters())
    assert all(p.grad is None for p in backdoored.parameters())


def test_the_backdoored_network_is_copied_not_changed():
    before = {name: value.clone() for name, value in NET.state_dict().items()}
    net = PolarizedNet(NET, "layer3.0.conv2")
    with torch.no_grad():
        net.polarizer.conv.weight.mul_(0)
    assert all(torch.equal(value, before[name]) for name, value in NET.state_dict().items())
    assert all(p.requires_grad for p in NET.parameters())


def test_train_mode_reaches_the_polarizer_alone():
    net = PolarizedNet(NET, "layer4.1.conv1").train()
    training = {name for name, module in net.named_modules() if module.training}
    assert training
    assert all("polarizer" in name for name in training)


def test_features_are_what_the_polarizer_is_given():
    net = PolarizedNet(NET, "layer4.1.conv1")
    x = torch.rand(2, 3, 32, 32)
    stream = net.prefix(x)
    expected = torch.relu(NET.net.layer4[1].bn1(stream))
    torch.testing.assert_close(net.features(stream), expected)
    assert not net.polarizer._forward_pre_hooks


def test_unknown_layer_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'layer4.1.convv1'.*'layer4.1.conv1'"):
        PolarizedNet(NET, "layer4.1.convv1")
    with pytest.raises(UnknownNameError, match=r"layer 'features\.46'"):
        PolarizedNet(NET, "features.46")


def test_layer_names_round_trip():
    for text in ("layer4.1.conv1", "after:conv1", "stream:layer4.1"):
        assert str(InsertionLayer.parse(text)) == text
    assert str(InsertionLayer.parse("before:conv1")) == "conv1"


def test_train_mode_is_no_identity_which_is_why_it_is_an_option():
    polarizer = NeuralPolarizer(4)
    h = torch.randn(16, 4, 3, 3) * 5 + 2
    torch.testing.assert_close(polarizer.eval()(h), h / (1 + 1e-5) ** 0.5)
    assert (polarizer.train()(h) - h).abs().mean() > 1


def test_folding_the_statistics_is_an_exact_identity_with_the_true_scale():
    polarizer = NeuralPolarizer(4).eval()
    h = torch.randn(64, 4, 3, 3) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None, None] + 3
    polarizer.fold_statistics(h.split(10))
    torch.testing.assert_close(polarizer(h), h, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(polarizer.bn.running_mean, h.mean((0, 2, 3)))
    torch.testing.assert_close(polarizer.bn.running_var, h.var((0, 2, 3), unbiased=False))


def test_folded_matrix_and_offset_are_the_same_map():
    polarizer = NeuralPolarizer(4).eval()
    for tensor in (*polarizer.parameters(), polarizer.bn.running_mean):
        torch.nn.init.normal_(tensor)
    h = torch.randn(2, 4, 3, 3)
    matrix, offset = polarizer.folded()
    expected = torch.einsum("cd,bdhw->bchw", matrix, h) + offset[:, None, None]
    torch.testing.assert_close(polarizer(h), expected)


# --- any other classifier


class Digits(nn.Module):
    """A small network of a user: one color, a `view` that needs contiguous features, no segments."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(4, 6, 1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8 * 6 * 7, 3)

    def forward(self, x):
        h = self.conv2(self.squeeze(self.conv1(x).relu()).relu()).relu()
        return self.linear(self.conv3(h).relu().view(len(x), -1))


def mobilenet():
    return torchvision.models.mobilenet_v3_small(weights=None, num_classes=5)


OTHERS = {
    "digits": (Digits, (1, 12, 14), "conv2"),
    "mobilenet": (mobilenet, (3, 32, 32), "stream:features.10"),
}


@pytest.mark.parametrize(("build", "shape", "default"), OTHERS.values(), ids=OTHERS)
def test_any_classifier_can_be_polarized(build, shape, default):
    torch.manual_seed(0)
    plain = build().eval()
    generator = torch.Generator().manual_seed(0)
    data = ImageSet(
        torch.randint(0, 256, (12, *shape), dtype=torch.uint8, generator=generator), torch.arange(12) % 3
    )
    expected = plain(data.images / 255)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    assert default_insertion_layer(plain, shape) == default
    layers = [info.layer for info in insertion_layers(plain, shape)]
    assert {layer.module for layer in layers if layer.kind != "stream"} == {
        name for name, module in plain.named_modules() if isinstance(module, nn.Conv2d)
    }
    convolution = next(layer.module for layer in layers[::-1] if layer.kind == "before")
    for layer in (default, f"after:{convolution}"):
        net = PolarizedNet(plain, layer, shape)
        torch.testing.assert_close(net(data.images / 255), expected, rtol=1e-4, atol=1e-4)
        cfg = NPDConfig(epochs=1, warmup_epochs=1, batch_size=5, attack_on="base", precision="fp32")
        *_, end = train_polarizer(net, data, cfg)
        assert isinstance(end, Finished)
        assert not torch.equal(
            net.polarizer.conv.weight, PolarizedNet(plain, layer, shape).polarizer.conv.weight
        )
        logits = predict(net, data.images, torch.device("cpu"))
        torch.testing.assert_close(fold(net)(data.images / 255), logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(predict(plain, data.images, torch.device("cpu")), expected)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_the_default_of_the_paper_s_networks_is_the_paper_s_layer():
    assert default_insertion_layer(NET) == PAPER_LAYERS["preact_resnet18"]
    assert default_insertion_layer(VGG) == PAPER_LAYERS["vgg19_bn"]


def test_a_network_without_convolutions_or_logits_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(ConfigError, match=r"`nn\.Conv2d`"):
        default_insertion_layer(flat)
    with pytest.raises(ConfigError, match=r"\(1, 2, 30, 30\)"):
        PolarizedNet(nn.Sequential(nn.Conv2d(3, 2, 3)), "0")
