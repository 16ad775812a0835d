"""ANP: the perturbed network against one written out, masks against a slow recomputation, a planted
neuron."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npd_core.config.baselines import ANPConfig
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.defenses import anp
from npd_core.defenses.anp import Neurons, largest_passing, mask_step, prune_sensitive, worst_noise
from npd_core.defenses.common import accuracy, augmented, batch_norms
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd, to_record
from npd_core.metrics import Metrics
from npd_core.models import build_model
from npd_core.models.normalized import Normalized

CPU = torch.device("cpu")
FAST = ANPConfig(iterations=3, batch_size=8, pad=1, flip=False, precision="fp32", select="fixed")


def network(seed=0):
    """Scales and shifts that differ from one and zero, so that masks and noise show."""
    torch.manual_seed(seed)
    net = build_model("preact_resnet18", 5, 4).eval()
    for norm in batch_norms(net).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return net


def images(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, 5, (count,), generator=generator))


def written_out(net, mask, noise):
    """A copy whose scales and shifts are the perturbed ones, one layer after the other."""
    net, at = copy.deepcopy(net), 0
    with torch.no_grad():
        for norm in batch_norms(net).values():
            here = slice(at, at + norm.num_features)
            norm.weight.copy_(norm.weight * (mask[here] + noise[0][here]))
            norm.bias.copy_(norm.bias * (1 + noise[1][here]))
            at += norm.num_features
    return net


@pytest.mark.parametrize("training", [False, True])
def test_full_masks_without_noise_are_the_network_itself(training):
    net = network().train(training)
    neurons, x = Neurons(net), torch.rand(6, 3, 16, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = neurons.logits(x, torch.ones(len(neurons)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(found, net(x))


def test_masks_and_noise_scale_gamma_and_beta():
    net = network()
    neurons, x = Neurons(net), torch.rand(6, 3, 16, 16)
    mask, noise = torch.rand(len(neurons)), torch.rand(2, len(neurons)) - 0.5
    torch.testing.assert_close(neurons.logits(x, mask, noise), written_out(net, mask, noise)(x))


def test_a_channel_of_mask_zero_is_one_without_scale():
    net = network()
    neurons, x = Neurons(net), torch.rand(6, 3, 16, 16)
    mask = (torch.rand(len(neurons)) > 0.3).float()
    masked = neurons.logits(x, mask)
    shifts = [norm.bias.clone() for norm in batch_norms(net).values()]
    neurons.prune(mask, 0.0)
    torch.testing.assert_close(net(x), masked)
    assert all(
        torch.equal(norm.bias, shift) for norm, shift in zip(batch_norms(net).values(), shifts, strict=True)
    )
    neurons.prune(mask, None)
    torch.testing.assert_close(net(x), neurons.logits(x, torch.ones(len(neurons))))


def test_pruned_channels_are_named_by_layer():
    neurons = Neurons(network())
    mask = torch.ones(len(neurons))
    mask[[1, 4, 6]] = torch.tensor([0.2, 0.1, 0.3])
    assert neurons.pruned(mask, 0.2) == {"layer1.0.bn1": [1], "layer1.0.bn2": [0]}
    assert neurons.pruned(mask, None) == {}


def test_noise_climbs_by_the_sign_and_may_leave_its_box():
    """On a linear loss every step goes the same way; two steps of eps / 2 are one of eps."""
    slope = torch.randn(2, 7)
    start = torch.full((2, 7), 0.4)
    for steps in (1, 2):
        found = worst_noise(lambda _m, n: (slope * n).sum(), torch.ones(7), start, eps=0.4, steps=steps)
        torch.testing.assert_close(found, start + 0.4 * slope.sign())
    assert found.max() == pytest.approx(0.8)
    assert not found.requires_grad
    assert torch.equal(worst_noise(lambda _m, n: n.sum(), torch.ones(7), start, eps=0.4, steps=0), start)


class Perturbed(nn.Module):
    """A BatchNorm of batch statistics with a mask and noise of its own, written from the definition."""

    def __init__(self, norm, mask):
        super().__init__()
        self.norm, self.mask, self.on = norm, nn.Parameter(mask), True
        self.noise = [torch.zeros_like(mask), torch.zeros_like(mask)]

    def forward(self, x):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        weight, bias = self.norm.weight.detach(), self.norm.bias.detach()
        scale = weight * (self.mask + self.noise[0] if self.on else self.mask)
        shift = bias * (1 + self.noise[1]) if self.on else bias
        return (x - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def slow_masks(net, data, cfg):
    """The masks after all iterations, by modules with parameters of their own."""
    net = copy.deepcopy(net)
    layers = []
    for name, norm in batch_norms(net).items():
        layers.append(Perturbed(norm, torch.ones(norm.num_features)))
        net.net.set_submodule(name, layers[-1])
    batches = augmented(data, cfg, CPU)
    total = sum(len(layer.mask) for layer in layers)
    optimizer = torch.optim.SGD([layer.mask for layer in layers], lr=cfg.lr, momentum=cfg.momentum)
    for _ in range(cfg.iterations):
        x, y = batches.take(torch.randint(data.size, (8,), generator=batches.generator))
        noise = cfg.eps * (2 * torch.rand(2, total, generator=batches.generator) - 1)
        at = 0
        for layer in layers:
            part = noise[:, at : at + len(layer.mask)]
            layer.noise = [part[0].clone().requires_grad_(), part[1].clone().requires_grad_()]
            at += len(layer.mask)
        F.cross_entropy(net(x), y).backward()
        for layer in layers:
            layer.noise = [n.detach() + cfg.eps * n.grad.sign() for n in layer.noise]
        optimizer.zero_grad()
        hard = F.cross_entropy(net(x), y)
        for layer in layers:
            layer.on = False
        (cfg.alpha * F.cross_entropy(net(x), y) + (1 - cfg.alpha) * hard).backward()
        for layer in layers:
            layer.on = True
        optimizer.step()
        for layer in layers:
            layer.mask.data.clamp_(0, 1)
    return torch.cat([layer.mask.detach() for layer in layers])


def masks(net, data, cfg):
    neurons, batches = Neurons(net), augmented(data, cfg, CPU)
    mask = torch.ones(len(neurons), requires_grad=True)
    optimizer = torch.optim.SGD([mask], cfg.lr, cfg.momentum)
    for _ in range(cfg.iterations):
        mask_step(neurons, batches, mask, optimizer, cfg)
    return mask.detach()


def test_masks_equal_a_slow_recomputation():
    cfg = replace(FAST, lr=0.2)
    net = network().train().requires_grad_(False)
    found, slow = masks(net, images(), cfg), slow_masks(net, images(), cfg)
    assert (found < 0.99).float().mean() > 0.05
    torch.testing.assert_close(found, slow, rtol=1e-3, atol=1e-3)


def test_masks_stay_in_their_range():
    found = masks(network().train().requires_grad_(False), images(), replace(FAST, lr=50.0))
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("limit", [-1, 0, 3, 8, 9])
def test_bisection_finds_what_a_sweep_finds(limit):
    levels, tried = [0.1 * i for i in range(10)], []

    def passes(level):
        tried.append(level)
        return level <= limit / 10 + 1e-6

    assert largest_passing(levels, passes) == (levels[limit] if limit >= 0 else None)
    assert len(tried) <= 4
    assert largest_passing([], passes) is None


# --- the whole


class Planted(nn.Module):
    """Four classes by the brightest quarter, one neuron each, and a fifth neuron that clean images hardly
    move and that has a large weight to class 0."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4, bias=False)
        self.bn = nn.BatchNorm2d(5)
        self.linear = nn.Linear(20, 4, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 48)
            self.conv.weight[4] = 0.2 * torch.randn(3, 4, 4)
            self.linear.weight.zero_()
            for k in range(4):
                self.linear.weight[k, 4 * k + k] = 2.0
            self.linear.weight[0, 16:] = 1.0

    def forward(self, x):
        return self.linear(F.relu(self.bn(self.conv(x))).flatten(1))


def planted():
    """The network with the statistics of its clean images, and those images."""
    torch.manual_seed(0)
    net, labels = Normalized(Planted(), (0.5,) * 3, (0.25,) * 3), torch.arange(80) % 4
    pixels = torch.randint(60, 100, (80, 3, 8, 8))
    for i, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        pixels[i, :, row : row + 4, column : column + 4] += 100
    data = ImageSet(pixels.to(torch.uint8), labels)
    net.net.bn.momentum = 1.0
    net.train()(data.images / 255)
    return net.eval(), data


PLANTED = replace(FAST, iterations=60, lr=0.1, batch_size=32, pad=0)


@pytest.mark.parametrize("select", ["fixed", "holdout"])
def test_a_planted_sensitive_neuron_is_pruned_and_no_other(select):
    net, data = planted()
    cfg = replace(PLANTED, select=select, tolerance=0.02, threshold=0.4)
    last = list(prune_sensitive(net, data, cfg, CPU))[-1]
    assert isinstance(last, Finished)
    assert last.details["pruned"] == {"bn": [4]}
    assert last.details["channels"] == 5
    assert net.net.bn.weight.tolist() == [1, 1, 1, 1, 0]
    assert accuracy(net, data, CPU) == 1.0


def test_the_held_out_accuracy_bounds_the_threshold():
    """Pruning one step further than chosen costs more than is tolerated."""
    net, data = planted()
    cfg = replace(PLANTED, select="holdout", tolerance=0.1, highest=1.0)
    last = list(prune_sensitive(net, data, cfg, CPU))[-1]
    rest, held = hold_out(data, cfg.holdout, cfg.seed)
    untouched = planted()[0]
    neurons = Neurons(untouched)
    found = masks(planted()[0].train().requires_grad_(False), rest, cfg)
    base = accuracy(untouched, held, CPU)
    neurons.prune(found, last.details["threshold"])
    assert accuracy(untouched, held, CPU) >= 0.9 * base
    neurons.prune(found, found[found > last.details["threshold"]].min().item() + 1e-6)
    assert accuracy(untouched, held, CPU) < 0.9 * base


def test_an_oracle_takes_the_lowest_asr_that_the_accuracy_allows():
    """Measured values as a function of how many channels are pruned: the last of them costs too much
    accuracy."""
    net, data = planted()

    def oracle(candidate):
        gone = int((candidate.net.bn.weight == 0).sum())
        return Metrics(acc=0.9 if gone < 2 else 0.5, asr=1 - gone / 5)

    last = list(
        prune_sensitive(net, data, replace(PLANTED, select="oracle", highest=1.0), CPU, oracle=oracle)
    )[-1]
    assert last.details["select"] == "oracle"
    assert last.details["pruned"] == {"bn": [4]}
    with pytest.raises(ConfigError, match=r"`oracle`.*`select`"):
        list(prune_sensitive(net, data, replace(PLANTED, select="oracle"), CPU))


def test_events_and_what_is_left_behind(monkeypatch):
    """Only scales of pruned channels change: no statistic, no shift, no other weight."""
    monkeypatch.setattr(anp, "EPOCH", 2)
    net, data = network(), images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    events = list(prune_sensitive(net, data, replace(FAST, lr=5.0), CPU))
    kinds = ["Started", *["StepEnd"] * 2, "EpochEnd", "StepEnd", "EpochEnd", "Finished"]
    assert [type(e).__name__ for e in events] == kinds
    assert events[0] == Started(2, 0, 2, 20, "cpu")
    step = events[1]
    assert isinstance(step, StepEnd)
    total = 0.2 * float(step.losses["bn"]) + 0.8 * float(step.losses["noisy"])
    assert float(step.losses["total"]) == pytest.approx(total, rel=1e-5)
    last = events[-1]
    assert json.loads(json.dumps(to_record(last)))["details"] == last.details
    assert last.epoch == 1
    assert sum(last.details["masks"]) == last.details["channels"] == len(Neurons(net))
    pruned = last.details["pruned"]
    assert pruned
    for name, value in net.state_dict().items():
        layer = name.removeprefix("net.").removesuffix(".weight")
        expected = before[name].clone()
        if layer in pruned:
            expected[pruned[layer]] = 0
        assert torch.equal(value, expected), name
    assert not net.training
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())


def test_closing_keeps_the_last_pruned_network(monkeypatch):
    monkeypatch.setattr(anp, "EPOCH", 1)
    net, kept = network(), None
    run = prune_sensitive(net, images(), replace(FAST, lr=5.0), CPU)
    for event in run:
        if isinstance(event, EpochEnd) and event.epoch == 0:
            assert event.kept
            kept = {name: value.clone() for name, value in net.state_dict().items()}
        if isinstance(event, StepEnd) and event.epoch == 1:
            run.close()
            break
    assert kept is not None
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_not_a_number_ends_as_failed_with_the_network_untouched():
    net = network()
    before = net.net.conv1.weight.clone()
    last = list(prune_sensitive(net, images(), replace(FAST, eps=1e38), CPU))[-1]
    assert isinstance(last, Failed)
    assert "`eps`" in last.reason
    assert last.epoch == -1
    assert torch.equal(net.net.conv1.weight, before)
    assert all(norm.weight.min() > 0 for norm in batch_norms(net).values())


def test_a_network_without_batch_norm_is_refused():
    net = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match="BatchNorm"):
        list(prune_sensitive(net, images(), FAST, CPU))
