"""Fine-pruning: the sweep against whole forward passes, a planted dormant backdoor neuron, masks that
stay."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from npd_core.config.baselines import FPConfig
from npd_core.data.clean import hold_out
from npd_core.data.load import ImageSet
from npd_core.defenses.fp import fine_prune, head_inputs, last_passing, sweep
from npd_core.events import EpochEnd, Finished, Started, StepEnd
from npd_core.models import Normalized, build_model

CPU = torch.device("cpu")
FAST = FPConfig(epochs=2, batch_size=16, pad=0, flip=False, precision="fp32")


def network():
    torch.manual_seed(0)
    return build_model("preact_resnet18", 5, 8).eval()


def images(net, count=20):
    """Random images with the labels that the network gives them, but for every fifth."""
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        labels = net(pixels / 255).argmax(1)
    return ImageSet(pixels, torch.where(torch.arange(count) % 5 == 0, (labels + 1) % 5, labels))


@torch.no_grad()
def accuracy_without(net, data, neurons):
    """Accuracy of a whole forward pass with these columns of the head set to zero."""
    kept = net.net.linear.weight.clone()
    net.net.linear.weight[:, neurons] = 0
    right = net(data.images / 255).argmax(1) == data.labels
    net.net.linear.weight.copy_(kept)
    return int(right.sum()) / data.size


def test_the_sweep_is_that_of_whole_forward_passes():
    net = network()
    data = images(net)
    h = head_inputs(net, data, CPU, "fp32")
    assert h.shape == (20, 64)
    order = h.mean(0).argsort()
    found = sweep(h, data.labels, net.net.linear.weight, net.net.linear.bias, order, step=7).tolist()
    assert len(found) == 10
    assert len(set(found)) > 2
    assert [count / 20 for count in found] == [accuracy_without(net, data, order[: 7 * i]) for i in range(10)]


def test_the_last_passing_mask_comes_before_the_first_that_costs_too_much():
    assert last_passing([100, 99, 91, 90, 100], 0.1) == 2
    assert last_passing([100, 100, 105], 0.1) == 2
    assert last_passing([100, 90], 0.1) == 0
    assert last_passing([0, 0, 0], 0.1) == 0
    assert last_passing([100, 100], 0.0) == 0


PLANTED = 11


def planted():
    """A head on 12 pixels. Pixels 0 and 1 tell the class; 2 to 10 say nothing; the last one is black in every
    clean image and, once lit, turns everything into class 0."""
    net = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (0.0,) * 3, (1.0,) * 3)
    weight = torch.zeros(2, 12)
    weight[0, 0] = weight[1, 1] = 1.0
    weight[0, PLANTED] = 50.0
    with torch.no_grad():
        net.net[1].weight.copy_(weight)
        net.net[1].bias.copy_(torch.tensor([0.0, 0.1]))
    labels = torch.arange(120) % 2
    pixels = torch.zeros(120, 12, dtype=torch.uint8)
    pixels[labels == 0, 0] = 200
    pixels[labels == 1, 1] = 255
    pixels[:, 2:PLANTED] = torch.arange(10, 91, 10, dtype=torch.uint8)
    return net.eval(), ImageSet(pixels.view(120, 3, 2, 2), labels)


def test_a_dormant_backdoor_neuron_is_pruned_and_stays_pruned():
    net, data = planted()
    triggered = data.images.float().flatten(1) / 255
    triggered[:, PLANTED] = 1.0
    triggered = triggered.view_as(data.images)
    assert not net(triggered).argmax(1).any()
    events = []
    for event in fine_prune(net, data, replace(FAST, lr=0.1, weight_decay=0.1), CPU):
        events.append(event)
        if isinstance(event, StepEnd | EpochEnd | Finished):
            assert not net.net[1].weight[:, 2:].any()
    assert events[0] == Started(2, 0, 8, 120, "cpu")
    assert [type(e).__name__ for e in events[1:]] == (["StepEnd"] * 8 + ["EpochEnd"]) * 2 + ["Finished"]
    details = events[-1].details
    assert details["pruned"] == list(range(2, 12))
    assert details["neurons"] == 12
    assert details["sweep"] == [[n, 1.0] for n in range(11)] + [[11, 0.5]]
    assert torch.equal(net(triggered).argmax(1), data.labels)
    assert net.net[1].weight[:, :2].all()


@pytest.mark.parametrize("holdout_min", [10, 1000])
def test_the_accuracy_is_tested_on_held_out_images_where_there_are_enough(holdout_min):
    net = network()
    data = images(net, 30)
    cfg = replace(FAST, epochs=0, step=0.2, holdout_min=holdout_min, holdout=0.3, tolerance=0.5)
    measured, held = hold_out(data, 0.3, cfg.seed) if holdout_min == 10 else (data, data)
    order = torch.stack([head_inputs(net, measured, CPU, "fp32")[:, c].mean() for c in range(64)]).argsort()
    expected = [[n, accuracy_without(net, held, order[:n])] for n in range(0, 64, 13)]
    *_, end = fine_prune(net, data, cfg, CPU)
    assert [n for n, _ in end.details["sweep"]] == [n for n, _ in expected]
    assert [a for _, a in end.details["sweep"]] == pytest.approx([a for _, a in expected])
    count = len(end.details["pruned"])
    assert end.details["pruned"] == sorted(order[:count].tolist())
    assert all(a > 0.5 * expected[0][1] for n, a in expected if n <= count)
    assert (net.net.linear.weight == 0).all(0).nonzero().flatten().tolist() == end.details["pruned"]


def test_a_closed_generator_leaves_a_pruned_usable_network():
    net, data = planted()
    training = fine_prune(net, data, FAST, CPU)
    for event in training:
        if isinstance(event, StepEnd) and event.step == 3:
            break
    training.close()
    assert not net.training
    assert not net.net[1].weight[:, 2:].any()
    assert torch.equal(net(data.images / 255).argmax(1), data.labels)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
