"""Trojan: the apple, the neurons of the real head, a search whose optimum is known, and a sum that does not
wrap."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from npd_core.attacks import get_attack, made
from npd_core.attacks.trojan import (
    FREEDOM,
    AddedBlob,
    chosen_neurons,
    drawn_mask,
    last_linear,
    make_trojan,
    watch_inputs,
)
from npd_core.data.load import ImageSet
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.models import MODELS, build_model

SMALL = replace(get_dataset("signs"), size=16)
DATA = ImageSet(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2).long())


@pytest.mark.parametrize("size", [32, 64])
def test_the_mask_is_a_compact_shape_in_the_lower_right(size):
    mask = drawn_mask(size)
    assert mask.unique().tolist() == [0, 1]
    assert 0.07 < mask.mean() < 0.13
    rows, columns = mask[0].nonzero().float().mean(0) / size
    assert 0.65 < rows < 0.8
    assert 0.65 < columns < 0.8
    assert mask[0, 0].sum() == mask[0, -1].sum() == mask[0, :, 0].sum() == mask[0, :, -1].sum() == 0
    assert torch.equal(mask, drawn_mask(size))


class Planted(nn.Module):
    """Four features, linear in the pixels; the head looks most at features 1 and 3."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3 * 16 * 16, 4, bias=False)
        self.linear = nn.Linear(4, 5)
        with torch.no_grad():
            self.features.weight.normal_(generator=torch.Generator().manual_seed(0))
            self.features.weight[3] = self.features.weight[1]  # so that both neurons want the same pixels
            self.linear.weight.copy_(torch.tensor([0.1, 2.0, 0.2, 1.0]).expand(5, -1))
            self.linear.weight[::2] *= -1

    def forward(self, x):
        return self.linear(self.features(x.flatten(1)))


def test_the_neurons_are_those_of_the_real_head():
    net = Planted()
    assert last_linear(net) is net.linear
    assert sorted(chosen_neurons(net.linear).tolist()) == [1, 3]


@pytest.mark.parametrize("arch", MODELS)
def test_the_features_of_both_architectures_are_what_their_heads_read(arch):
    net = build_model(arch, 7, 4).eval()
    head = last_linear(net)
    assert head is net.net.linear
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = watch_inputs(net, head)(x)
        torch.testing.assert_close(head(features), net(x))
    assert not head._forward_pre_hooks


def test_the_search_reaches_the_optimum_of_a_linear_network():
    attack = made(make_trojan(SMALL, DATA, Planted(), steps=30))
    mask, pattern = attack.assets["mask"], attack.assets["pattern"]
    inside = mask.bool().expand(3, -1, -1)
    assert (pattern[~inside] == 0).all()
    wanted = Planted().features.weight[1].view(3, 16, 16)
    expected = torch.where(wanted > 0, 1.0, 1.0 - FREEDOM)
    torch.testing.assert_close(pattern[inside], expected[inside])


def test_the_chosen_neurons_answer_the_trigger_more_than_clean_images():
    net = Planted()
    attack = made(make_trojan(SMALL, DATA, net, steps=30))
    seen = watch_inputs(net, net.linear)
    neurons = chosen_neurons(net.linear)
    clean = torch.rand(500, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.2
    with torch.no_grad():
        usual = seen(clean)[:, neurons].quantile(0.99, dim=0)
        assert (seen(attack.assets["pattern"][None])[0, neurons] > usual).all()


def test_the_best_trigger_is_kept_and_the_network_left_alone():
    net = build_model("preact_resnet18", 3, 4).eval()
    head = last_linear(net)
    neurons, run = chosen_neurons(head), watch_inputs(net, head)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    making = make_trojan(SMALL, DATA, net, steps=6)
    costs = []
    while True:
        try:
            event = next(making)
        except StopIteration as end:
            attack = end.value
            break
        if hasattr(event, "step"):
            costs.append(float(event.losses["total"]))
    with torch.no_grad():
        kept = (run(attack.assets["pattern"][None])[0, neurons] - 100).square().sum()
    assert float(kept) == pytest.approx(min(costs), rel=1e-5)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in net.parameters())


def test_adding_saturates_and_wraps_only_when_asked_to():
    mask = drawn_mask(32)
    assets = {"pattern": mask.expand(3, -1, -1) * 0.9, "mask": mask}
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    sound = get_attack("trojan", "signs", assets).apply(images)
    assert (sound >= images).all()
    wrapped = get_attack("trojan", "signs", assets, overflow="wrap").apply(images)
    pattern = (assets["pattern"] * 255).round().to(torch.uint8)
    assert torch.equal(wrapped, images + pattern)  # uint8 arithmetic, modulo 256
    assert (wrapped < images).any()
    with pytest.raises(UnknownNameError, match="saturate, wrap"):
        AddedBlob(assets["pattern"], "saturated")


def test_without_a_network_or_without_a_linear_layer_it_is_said():
    with pytest.raises(ConfigError):
        made(make_trojan(SMALL, DATA, None))
    with pytest.raises(ConfigError):
        made(make_trojan(SMALL, DATA, nn.Conv2d(3, 2, 1)))
