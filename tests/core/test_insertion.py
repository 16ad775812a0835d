"""The polarizer starts as the identity wherever it is put, and nothing else of the network ever changes."""

import pytest
import torch

from npd_core.config.npd import PAPER_LAYERS, default_layer
from npd_core.errors import UnknownNameError
from npd_core.models import build_model
from npd_core.polarizer.insertion import InsertionLayer, PolarizedNet, find_layer, insertion_layers
from npd_core.polarizer.layer import NeuralPolarizer


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
POINTS = [info.name for info in insertion_layers(NET)]
VGG = lively_network("vgg19_bn")
ALL = [(net, info.name) for net in (NET, VGG) for info in insertion_layers(net)]


def test_every_convolution_offers_a_point_before_and_after_it():
    convolutions = [name for name, module in NET.net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 20
    assert {name for name in POINTS if ":" not in name} == set(convolutions)
    assert {name for name in POINTS if name.startswith("after:")} == {
        f"after:{name}" for name in convolutions
    }
    assert [name for name in POINTS if name.startswith("stream:")] == [
        f"stream:layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert len(POINTS) == len(set(POINTS)) == 48


def test_points_come_in_forward_order_with_their_shapes():
    info = {i.name: (i.channels, i.height, i.width) for i in insertion_layers(NET)}
    assert POINTS[0] == "conv1"
    assert POINTS.index("layer2.0.conv1") < POINTS.index("layer2.0.conv2") < POINTS.index("layer3.0.conv1")
    assert info["conv1"] == (3, 32, 32)
    assert info["after:layer2.0.conv1"] == (8, 16, 16)
    assert info["layer4.1.conv1"] == info["stream:layer4.1"] == (32, 4, 4)


def test_sixty_four_pixel_images_have_maps_twice_as_large():
    assert find_layer(NET, "layer4.1.conv1", size=64).height == 8


def test_the_seventeen_points_of_figure_3_are_the_main_path_convolutions():
    main = [n for n in POINTS if n.startswith("after:") and "shortcut" not in n]
    assert len(main) == 17
    assert main[15] == "after:layer4.1.conv1"


def test_the_default_and_the_paper_s_point_are_points_of_the_network():
    main = [n for n in POINTS if n.startswith("layer4") and "shortcut" not in n]
    assert PAPER_LAYERS["preact_resnet18"] == main[2]
    assert default_layer("preact_resnet18") in POINTS


def test_a_plain_network_offers_its_sixteen_convolutions_and_no_stream():
    points = [info.name for info in insertion_layers(VGG)]
    convolutions = [name for name, module in VGG.net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 16
    assert points == [name for conv in convolutions for name in (conv, f"after:{conv}")]
    assert default_layer("vgg19_bn") == PAPER_LAYERS["vgg19_bn"] == convolutions[14]
    for size, side in ((32, 2), (64, 4)):
        info = find_layer(VGG, "features.46", size)
        assert (info.channels, info.height, info.width) == (32, side, side)


@pytest.mark.parametrize(("backdoored", "point"), ALL, ids=[point for _, point in ALL])
def test_identity_at_start_for_every_point(backdoored, point):
    x = torch.rand(2, 3, 32, 32)
    net = PolarizedNet(backdoored, point)
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


@pytest.mark.parametrize("point", [point for net, point in ALL if net is VGG])
def test_the_prefix_of_a_plain_network_ends_right_before_the_point(point):
    net = PolarizedNet(VGG, point)
    x = torch.rand(2, 3, 32, 32)
    place = int(point.rpartition(".")[2])
    assert torch.equal(net.prefix(x), VGG.net.features[:place](VGG.normalise(x)))


@pytest.mark.parametrize(("backdoored", "point"), ALL, ids=[point for _, point in ALL])
def test_only_theta_trains_and_gradients_reach_it(backdoored, point):
    net = PolarizedNet(backdoored, point)
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


def test_point_names_round_trip():
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
