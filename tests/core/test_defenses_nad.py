"""Attention distillation: maps of unit length, nothing to learn from oneself, a teacher that stays as it
is."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npd_core.config.baselines import NADConfig
from npd_core.data.load import ImageSet
from npd_core.defenses import nad
from npd_core.defenses.common import Repair, augmented, fine_tune
from npd_core.defenses.nad import attention, attention_loss, distill, distill_attention, levels
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd
from npd_core.models import Normalized, build_model
from npd_core.training.guard import NOT_FINITE

CPU = torch.device("cpu")
FAST = NADConfig(epochs=2, teacher_epochs=1, batch_size=8, pad=0, flip=False, precision="fp32")
THREE = ["layer2.1", "layer3.1", "layer4.1"]


def network(seed=0):
    torch.manual_seed(seed)
    return build_model("preact_resnet18", 5, 8).eval()


def images(count=16):
    """Random images, all of one class, so that none of the fine-tunings is a failure."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.zeros(count, dtype=torch.long))


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def run(generator):
    """The events of a distillation, and what it returned."""
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def test_attention_has_unit_length_and_closed_form():
    maps = attention(torch.randn(6, 10, 4, 3) * 1e3)
    assert maps.shape == (6, 12)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(6))
    features = torch.tensor([[1.0, 0.0], [-1.0, 2.0]]).view(
        1, 2, 1, 2
    )  # sums of squares 2, 4; of absolutes 2, 2
    torch.testing.assert_close(attention(features), torch.tensor([[1.0, 2.0]]) / 5**0.5)
    torch.testing.assert_close(attention(features, p=1.0), torch.tensor([[1.0, 1.0]]) / 2**0.5)
    assert not attention(torch.zeros(1, 2, 2, 2)).any()
    assert torch.equal(attention(torch.full((1, 3, 1, 1), 7.0)).round(decimals=4), torch.ones(1, 1))


def test_the_loss_is_the_weighted_mean_square_of_the_maps():
    ours, theirs = [[torch.randn(3, 4, s, s) for s in (4, 2)] for _ in range(2)]
    expected = 0.0
    for f, g, beta in zip(ours, theirs, (500.0, 1000.0), strict=True):
        for i in range(3):
            a, b = (h[i].square().sum(0) / h[i].square().sum(0).norm() for h in (f, g))
            expected += beta * float((a - b).square().sum()) / (3 * a.numel())
    assert float(attention_loss(ours, theirs, (500.0, 1000.0), 2.0)) == pytest.approx(expected, rel=1e-4)
    assert float(attention_loss(ours, ours, (500.0, 1000.0), 2.0)) == 0.0


def test_levels_of_a_residual_network_are_its_last_stages():
    assert levels(network(), (16, 16), 3) == THREE
    assert levels(network(), (16, 16), 2) == THREE[1:]


def pooled(pools=5):
    """Like VGG: a pooling layer ends every stage."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(pools):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return Normalized(net, (0.0,) * 3, (1.0,) * 3).eval()


def test_levels_of_a_pooling_network_have_more_than_one_pixel():
    assert levels(pooled(), (32, 32), 3) == ["0.8", "0.12", "0.16"]
    vgg = build_model("vgg19_bn", 5, 8).eval()
    assert levels(vgg, (32, 32), 3) == [f"features.{i}" for i in (13, 26, 39)]
    assert levels(pooled(), (64, 64), 3) == ["0.12", "0.16", "0.20"]
    with pytest.raises(ConfigError, match=r"\b3\b.*0\.4, 0\.8"):
        levels(pooled(3), (8, 8), 3)


def test_events_come_in_order_with_the_teacher_as_warm_up():
    net = network()
    events = list(distill_attention(net, images(), FAST, CPU))
    assert events[0] == Started(2, 1, 2, 16, "cpu")
    assert [type(e).__name__ for e in events[1:]] == ["StepEnd", "StepEnd", "EpochEnd"] * 3 + ["Finished"]
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [-1, 0, 1]
    teacher, student = (
        [e for e in events if isinstance(e, StepEnd) and (e.epoch < 0) == early] for early in (1, 0)
    )
    assert set(teacher[0].losses) == {"bn", "total"}
    assert set(student[0].losses) == {"bn", "attention", "total"}
    assert float(student[0].losses["attention"]) > 0
    seconds = [e.seconds for e in events if isinstance(e, EpochEnd | Finished)]
    assert seconds == sorted(seconds)
    assert events[-1].details == {"levels": THREE}
    assert not net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_teacher_that_ended_badly_teaches_from_its_last_good_state(monkeypatch):
    taught = []

    def spoilt(repair, batches, cfg, *, epochs, first=0, step=None):
        with torch.no_grad():
            next(repair.net.parameters()).fill_(7.0)  # never kept
        return ""
        yield

    def spy(student, teacher, names, batches, cfg):
        taught.append(state(teacher))
        return ""
        yield

    monkeypatch.setattr(nad, "fine_tune", spoilt)
    monkeypatch.setattr(nad, "distill", spy)
    net = network()
    before = state(net)
    list(distill_attention(net, images(), FAST, CPU))
    assert all(torch.equal(value, taught[0][name]) for name, value in before.items())


@pytest.mark.parametrize(("which", "count"), [("three", 3), ("two", 2)])
def test_the_first_loss_is_that_of_student_and_teacher_side_by_side(which, count):
    ours, theirs, data = network(0), network(1), images(8)
    cfg = replace(FAST, levels=which, epochs=1)
    names = levels(ours, (16, 16), count)
    x, y = next(augmented(data, cfg, CPU).shuffled())
    reference = copy.deepcopy(ours).train()
    features: list[list[torch.Tensor]] = []
    for net in (reference, theirs):
        h, seen = net.normalize(x), {}
        for name in net.net.segments:
            h = seen[name] = net.net.get_submodule(name)(h)
        features.append([seen[name] for name in names])
        if net is reference:
            expected = F.cross_entropy(net.net.head(h), y)
    expected = expected + attention_loss(*features, (500.0, 1000.0, 1000.0)[:count], 2.0)
    events, _ = run(distill(Repair(ours, CPU), theirs, names, augmented(data, cfg, CPU), cfg))
    assert float(events[0].losses["total"]) == pytest.approx(expected.item(), rel=1e-4)


def test_the_teacher_stays_as_it_is_and_each_net_runs_once_a_batch():
    net, teacher = network(0), network(1).requires_grad_(False)
    before = state(teacher)
    calls = {"student": 0, "teacher": 0}
    for name, model in (("student", net), ("teacher", teacher)):
        model.net.conv1.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    data = images()
    _, reason = run(distill(Repair(net, CPU), teacher, THREE, augmented(data, FAST, CPU), FAST))
    assert reason == ""
    assert same(state(teacher), before)
    assert not teacher.training
    assert calls == {"student": 4 + 1, "teacher": 4}  # and once to measure the accuracy at the start


def test_the_student_comes_to_look_where_the_teacher_does():
    net, teacher = network(0), network(1)
    cfg = replace(FAST, epochs=8, lr=0.002)
    events, _ = run(distill(Repair(net, CPU), teacher, THREE, augmented(images(), cfg, CPU), cfg))
    apart = [e.losses["attention"] for e in events if isinstance(e, EpochEnd)]
    assert apart[-1] < 0.7 * apart[0]


def test_without_attention_and_teacher_it_is_fine_tuning():
    cfg = replace(FAST, betas=(0.0, 0.0, 0.0), teacher_epochs=0)
    net, other = network(), network()
    list(distill_attention(net, images(), cfg, CPU))
    run(fine_tune(Repair(other, CPU), augmented(images(), cfg, CPU), cfg, epochs=2))
    for name, value in state(net).items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_a_teacher_that_diverges_ends_the_run_and_leaves_the_network_as_it_was():
    net = network()
    before = state(net)
    *_, end = distill_attention(net, images(), replace(FAST, lr=1e30, teacher_epochs=3), CPU)
    assert isinstance(end, Failed)
    assert end.reason.startswith(NOT_FINITE)
    assert same(state(net), before)
