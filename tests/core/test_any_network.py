"""Networks of timm and torchvision and a class of one's own are polarized, resumed behind their frozen part,
folded, saved and exported."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import npd_core as npd
from npd_core.polarizer.fold import fold
from npd_core.polarizer.insertion import PolarizedNet, default_insertion_layer, insertion_layers
from npd_core.polarizer.layer import NeuralPolarizer


class Mine(nn.Module):
    """Two parallel branches behind a stem, then one convolution that everything passes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last, self.wide = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = self.stem(x).relu_()
        h = self.wide(self.last((self.left(h) + self.right(h)).relu())).relu()
        return self.head(h.mean((2, 3)))


def vit():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=4, **sizes)


def swin():
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=4, num_heads=(2, 2), **sizes)


def convnext():
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 2), dims=(8, 12, 16, 24), num_classes=4)


def resnet():
    return timm.create_model("resnet18", num_classes=4, channels=(8, 8, 16, 16), stem_width=8)


def mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.5)


NETWORKS = {
    "mine": (Mine, "last"),
    "resnet": (resnet, "stream:layer4.1"),
    "convnext": (convnext, "stream:stages.3.blocks.0"),
    "vit": (vit, "stream:blocks.2"),
    "swin": (swin, "stream:layers.1.blocks.1"),
    "mobilenet": (mobilenet, "stream:features.10"),
}
IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    """A network with logits of some size, and its default layer."""
    build, layer = request.param
    torch.manual_seed(0)
    net = build().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight)
    return net, layer


def disturbed(net, layer):
    polarized = PolarizedNet(net, layer)
    with torch.no_grad():
        for value in polarized.polarizer.parameters():
            value.add_(0.1 * torch.randn_like(value))
        polarized.polarizer.bn.running_mean.normal_()
    return polarized


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))


def test_the_default_is_passed_by_every_path_and_the_part_in_front_is_cached(network):
    net, layer = network
    infos = {info.name: info for info in insertion_layers(net)}
    assert default_insertion_layer(net) == layer
    assert infos[layer].every_path
    assert not infos[layer].pixels
    assert [info for info in infos.values() if info.pixels] == [next(iter(infos.values()))]
    x = IMAGES / 255
    for name in (layer, list(infos)[-1]):
        polarized = disturbed(net, name)
        assert polarized._cut is not None
        h = polarized.prefix(x)
        whole = polarized(x)
        assert h.shape[1:] != x.shape[1:]
        torch.testing.assert_close(polarized.suffix(h), whole)
        assert name != layer or not torch.allclose(whole, net(x), rtol=1e-3)
        with polarized.removed():
            torch.testing.assert_close(polarized.suffix(h), net(x))
        close(fold(polarized)(x), whole)


def test_gradients_flow_through_both_parts_as_through_the_whole(network):
    net, layer = network
    polarized = disturbed(net, layer)
    x = (IMAGES[:2] / 255).requires_grad_()
    whole = torch.autograd.grad(polarized(x).square().sum(), [x, polarized.polarizer.conv.weight])
    parts = torch.autograd.grad(
        polarized.suffix(polarized.prefix(x)).square().sum(), [x, polarized.polarizer.conv.weight]
    )
    for one, other in zip(parts, whole, strict=True):
        close(one, other)


def test_it_is_polarized_saved_and_loaded(network, tmp_path):
    net, layer = network
    repaired = npd.polarize(net, IMAGES, LABELS, epochs=1, warmup_epochs=1, epoch_steps=2, precision="fp32")
    assert repaired.layer == layer
    again = npd.load_polarized(repaired.save(tmp_path), net)
    close(again.net(IMAGES / 255), repaired.net(IMAGES / 255))


def test_layers_on_branches_are_marked():
    infos = {info.name: info for info in insertion_layers(Mine())}
    assert {name for name, info in infos.items() if not info.every_path} == {
        "left", "after:left", "right", "after:right"
    }  # fmt: skip
    assert {name for name, info in infos.items() if info.pixels} == {"stem"}
    branch = PolarizedNet(Mine().eval(), "left")
    assert branch._cut is not None
    assert branch._cut.cut == "stem"


def test_tokens_are_polarized_over_their_channels():
    infos = {info.name: info for info in insertion_layers(vit())}
    assert (infos["blocks.1.mlp.fc1"].channels, infos["blocks.1.mlp.fc1"].height) == (24, 17)
    assert infos["after:blocks.1.mlp.fc1"].channels == 96
    polarizer = NeuralPolarizer(4, tokens=True).eval()
    for value in (*polarizer.parameters(), polarizer.bn.running_mean):
        nn.init.normal_(value)
    matrix, offset = polarizer.folded()
    for shape in ((2, 5, 4), (2, 3, 5, 4)):
        h = torch.randn(shape)
        torch.testing.assert_close(polarizer(h), h @ matrix.T + offset)
    h = torch.randn(6, 5, 4) * 3 + 1
    polarizer = NeuralPolarizer(4, tokens=True).eval()
    polarizer.fold_statistics(h.split(4))
    torch.testing.assert_close(polarizer.bn.running_mean, h.mean((0, 1)))
    torch.testing.assert_close(polarizer(h), h, rtol=1e-4, atol=1e-4)


class Around(Mine):
    """Its logits also depend on the pixels around all modules."""

    def forward(self, x):
        return super().forward(x) + x.mean((2, 3))[:, :1]


class Drawn(Mine):
    """Its logits differ from call to call, so nothing can be proven."""

    def forward(self, x):
        return super().forward(x) + torch.rand(1)


@pytest.mark.parametrize("build", [Around, Drawn])
def test_a_network_that_cannot_be_split_is_run_as_a_whole(build):
    net = build().eval()
    assert not any(info.every_path for info in insertion_layers(net))
    polarized = PolarizedNet(net, default_insertion_layer(net))
    assert polarized._cut is None
    x = IMAGES / 255
    assert torch.equal(polarized.prefix(x), x)
