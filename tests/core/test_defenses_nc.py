"""Neural cleanse: the schedule of the cost, the search against a slow one, outliers, a planted 3x3
backdoor."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npd_core.config.baselines import NCConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.common import accuracy, augmented
from npd_core.defenses.nc import (
    Candidate,
    CostSchedule,
    Patch,
    neural_cleanse,
    outliers,
    search_epoch,
    unlearning_set,
)
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd, to_record
from npd_core.models.normalized import Normalized

CPU = torch.device("cpu")
CLASSES, SIZE, TARGET = 6, 12, 2
FAST = NCConfig(
    trigger_epochs=30, batch_size=30, epochs=4, pad=0, flip=False, precision="fp32", schedule="constant",
    classes_at_once=3, early_stop=5,
)  # fmt: skip


class Planted(nn.Module):
    """The class is the brightest of six cells of 3x6 pixels; a white 3x3 corner, which no clean image has, is
    a shortcut to class TARGET."""

    def __init__(self, shortcut):
        super().__init__()
        self.features = nn.Conv2d(3, CLASSES + 1, SIZE)
        self.linear = nn.Linear(CLASSES + 1, CLASSES, bias=False)
        with torch.no_grad():
            for values in (self.features.weight, self.features.bias, self.linear.weight):
                values.zero_()
            for k in range(CLASSES):
                row, column = 3 * (k // 2), 6 * (k % 2)
                self.features.weight[k, :, row : row + 3, column : column + 6] = 1 / 54
                self.linear.weight[k, k] = 12.0
            self.features.weight[CLASSES, :, -3:, -3:] = 1 / 27
            self.features.bias[CLASSES] = -0.75
            self.linear.weight[TARGET, CLASSES] = shortcut

    def forward(self, x):
        return self.linear(F.relu(self.features(x)).flatten(1))


def planted(shortcut=80.0):
    return Normalized(Planted(shortcut), (0.0,) * 3, (1.0,) * 3).eval()


def images(count=60):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randint(20, 60, (count, 3, SIZE, SIZE), generator=generator)
    for i, k in enumerate(labels.tolist()):
        row, column = 3 * (k // 2), 6 * (k % 2)
        pixels[i, :, row : row + 3, column : column + 6] += 90
    return ImageSet(pixels.to(torch.uint8), labels)


def triggered(data):
    x = data.images.clone()
    x[:, :, -3:, -3:] = 255
    return ImageSet(x, data.labels)


# --- the schedule


def run(schedule, *epochs):
    return [schedule.update(share, norm) for share, norm in epochs]


def test_the_cost_goes_up_after_successes_and_down_after_failures():
    schedule = CostSchedule(NCConfig(cost=1.0, patience=3, cost_up=2.0, cost_down=2.0**1.5))
    costs = []
    for share in (1, 1, 0.5, 1, 1, 1, 0.98, 1, 1, 0.97, 0, 0, 0, 0, 0):
        schedule.update(share, 9.0)
        costs.append(schedule.cost)
    down = 4 / 2**1.5
    expected = [1, 1, 1, 1, 1, 2, 2, 2, 4, 4, 4, down, down, down, down / 2**1.5]
    assert costs == pytest.approx(expected)


def test_the_best_is_the_smallest_norm_of_a_successful_epoch():
    schedule = CostSchedule(NCConfig())
    assert run(schedule, (0.9, 1.0), (0.98, 9.0), (1.0, 9.5), (0.97, 2.0), (1.0, 4.0)) == [
        False, True, False, False, True,
    ]  # fmt: skip
    assert schedule.best == 4.0


def test_a_search_rests_when_the_cost_moved_both_ways_and_the_norm_has_not_improved():
    schedule = CostSchedule(NCConfig(patience=2, early_stop=4))
    run(schedule, *[(1.0, 10.0)] * 6)
    assert schedule.stale == 5
    assert schedule.moved_up
    assert not schedule.done
    run(schedule, (0.0, 1.0), (0.0, 1.0))
    assert schedule.done
    run(schedule, (1.0, 9.95))
    assert schedule.done
    run(schedule, (1.0, 9.8))
    assert not schedule.done
    assert schedule.stale == 0


def test_slow_progress_is_progress_once_it_adds_up():
    """Four tenths of a percent an epoch: never one percent at once, more than one percent every third."""
    schedule, longest = CostSchedule(NCConfig(gain=0.01)), 0
    for epoch in range(30):
        schedule.update(1.0, 100 * 0.996**epoch)
        longest = max(longest, schedule.stale)
    assert longest == 2


# --- the search


def test_a_patch_replaces_what_its_mask_covers():
    x, mask, pattern = torch.rand(5, 3, 4, 4), torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    mask[0, 0, 0, 0], mask[0, 0, 1, 1] = 1.0, 0.0
    both = Patch(mask[:, None], pattern[:, None]).stamp(x)
    assert both.shape == (2, 5, 3, 4, 4)
    for g in range(2):
        torch.testing.assert_close(both[g], (1 - mask[g]) * x + mask[g] * pattern[g])
    assert torch.equal(both[0, :, :, 0, 0], pattern[0, :, 0, 0].expand(5, 3))
    assert torch.equal(both[0, :, :, 1, 1], x[:, :, 1, 1])


def slow_search(net, data, label, cfg, epochs):
    """One class on its own, the loss written out, the best patch kept."""
    a, b = torch.ones(1, SIZE, SIZE, requires_grad=True), torch.ones(3, SIZE, SIZE, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.1, betas=(0.5, 0.9))
    schedule, norms = CostSchedule(cfg), []
    for epoch in range(epochs):
        batches = augmented(data, cfg, CPU)
        batches.generator.manual_seed(cfg.seed * 100_003 + epoch)
        hits = 0
        for x, _ in batches.shuffled():
            m, q = torch.tanh(a) / 2 + 0.5, torch.tanh(b) / 2 + 0.5
            z = net((1 - m) * x + m * q)
            loss = F.cross_entropy(z, torch.full((len(x),), label)) + schedule.cost * m.abs().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += int(z.argmax(1).eq(label).sum())
        norms.append(float((torch.tanh(a.detach()) / 2 + 0.5).sum()))
        schedule.update(hits / data.size, norms[-1])
    return norms, a.detach(), schedule


@pytest.mark.parametrize("together", [(0, TARGET, 5), (TARGET,)])
def test_classes_side_by_side_find_what_each_finds_alone(together):
    net, data, cfg = planted().requires_grad_(False), images(), replace(FAST, patience=2, batch_size=16)
    candidates = [Candidate(k, (SIZE, SIZE), cfg, CPU) for k in together]
    batches = augmented(data, cfg, CPU)
    for _ in range(7):
        list(search_epoch(net, candidates, batches, cfg, 0))
    for candidate in candidates:
        norms, raw, schedule = slow_search(net, data, candidate.label, cfg, 7)
        assert candidate.epochs == 7
        torch.testing.assert_close(candidate.raw_mask.detach(), raw, rtol=1e-3, atol=1e-3)
        assert candidate.schedule.cost == schedule.cost
        assert candidate.schedule.best == pytest.approx(schedule.best, rel=1e-3)
        assert candidate.norm == pytest.approx(
            schedule.best if schedule.best < math.inf else norms[0], rel=1e-3
        )


def test_without_a_success_the_first_patch_is_kept():
    candidate = Candidate(0, (4, 4), NCConfig(), CPU)
    candidate.note(0.5, 7.0)
    first = candidate.patch
    candidate.note(0.9, 3.0)
    assert candidate.norm == 7.0
    assert candidate.patch is first
    candidate.note(1.0, 6.0)
    assert candidate.norm == 6.0
    assert candidate.patch is not first


# --- outliers


def test_a_class_far_below_the_median_is_flagged_and_one_far_above_is_not():
    """Median 10; deviations 0, 1, 1, 2, 2, 9, 90, so the median deviation is 2 and the MAD 2.9652."""
    found = outliers([10, 9, 11, 12, 8, 1, 100], 2.0)
    assert found.median == 10
    assert found.mad == pytest.approx(2.9652)
    assert found.anomaly[5] == pytest.approx(9 / 2.9652)
    assert found.flagged == [False] * 5 + [True, False]
    assert found.anomaly[6] > 2


def test_an_even_number_of_classes_has_the_mean_of_the_middle_two_as_median():
    assert outliers([1.0, 2.0, 4.0, 9.0], 2.0).median == 3.0


@pytest.mark.parametrize(
    ("norms", "flagged"),
    [([5.0] * 4, []), ([5.0] * 4 + [1.0], [4]), ([0.0] * 4 + [3.0], []), ([5.0] * 4 + [9.0], [])],
)
def test_norms_without_deviation_are_no_division_by_zero(norms, flagged):
    found = outliers(norms, 2.0)
    assert all(math.isfinite(value) for value in found.anomaly)
    assert [k for k, flag in enumerate(found.flagged) if flag] == flagged


# --- unlearning


def test_the_unlearning_set_stamps_a_share_of_every_class_with_true_labels():
    data = images(60)
    mask, pattern = torch.zeros(1, SIZE, SIZE), torch.rand(3, SIZE, SIZE)
    mask[:, :2, :2] = 0.5
    patches = [Patch(mask, pattern), Patch(torch.ones(1, SIZE, SIZE), pattern)]
    found = unlearning_set(data, patches, 0.2, seed=0)
    assert found.labels.bincount().tolist() == [8 + 2 * 2] * CLASSES
    assert found.images.dtype == torch.uint8
    half, full = found.images[48:60], found.images[60:]
    assert torch.equal(full, (pattern * 255).round().to(torch.uint8).expand(12, -1, -1, -1))
    assert torch.equal(found.labels[48:60], found.labels[60:])
    rows = {
        image.numpy().tobytes(): label for image, label in zip(data.images, data.labels.tolist(), strict=True)
    }
    assert all(
        rows[i.numpy().tobytes()] == k
        for i, k in zip(found.images[:48], found.labels[:48].tolist(), strict=True)
    )
    outside = {image[:, 2:, 2:].numpy().tobytes(): i for i, image in enumerate(data.images)}
    for image, label in zip(half, found.labels[48:60].tolist(), strict=True):
        source = outside[image[:, 2:, 2:].numpy().tobytes()]
        assert data.labels[source] == label
        mixed = 0.5 * data.images[source][:, :2, :2].float() + 0.5 * 255 * pattern[:, :2, :2]
        assert (image[:, :2, :2] - mixed).abs().max() <= 0.5 + 1e-3


# --- the whole


def test_a_planted_backdoor_has_the_smallest_mask_and_is_unlearned():
    net, data = planted(), images()
    poisoned = triggered(data)
    others = poisoned.subset(torch.nonzero(data.labels != TARGET).flatten())
    assert accuracy(net, data, CPU) == 1.0
    assert accuracy(net, others, CPU) == 0.0
    events = list(neural_cleanse(net, data, replace(FAST, epochs=12, lr=0.005, momentum=0.5), CPU))
    last = events[-1]
    assert isinstance(last, Finished)
    details = last.details
    assert details["flagged"] == [TARGET]
    assert min(details["norms"], key=details["norms"].__getitem__) == str(TARGET)
    assert details["norms"][str(TARGET)] < 12
    assert details["anomaly"][str(TARGET)] > 2
    assert details["norms"].keys() == {str(k) for k in range(CLASSES)}
    assert json.loads(json.dumps(to_record(last)))["details"] == last.details
    assert last.epoch == 11
    assert accuracy(net, data, CPU) == 1.0
    assert accuracy(net, others, CPU) > 0.8
    warm = [e for e in events if isinstance(e, EpochEnd) and e.epoch < 0]
    assert isinstance(events[0], Started)
    assert events[0].warmup_epochs == 60
    assert all(-60 <= e.epoch < 0 and not e.kept for e in warm)
    assert [e.epoch for e in warm] == sorted({e.epoch for e in warm})
    assert [e.epoch for e in events if isinstance(e, EpochEnd) and e.epoch >= 0] == list(range(12))
    first = events[1]
    assert isinstance(first, StepEnd)
    assert set(first.losses) == {"target", "norm", "total"}


def test_without_an_outlier_the_network_stays_bit_identical():
    net = planted(shortcut=0.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    last = list(neural_cleanse(net, images(), replace(FAST, trigger_epochs=3, outlier=1e9), CPU))[-1]
    assert isinstance(last, Finished)
    assert last.epoch == -1
    assert last.details["flagged"] == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_screening_lets_the_smallest_masks_go_on():
    short = {"screening_epochs": 5, "screening_keep": 3, "classes_at_once": 2}
    cfg = replace(FAST, trigger_epochs=10, batch_size=12, outlier=1e9, **short)
    events = list(neural_cleanse(planted(), images(), cfg, CPU))
    details, started = events[-1].details, events[0]
    assert len(details["norms"]) == 3
    assert str(TARGET) in details["norms"]
    assert sorted([*map(int, details["norms"]), *details["screened_out"]]) == list(range(CLASSES))
    assert started.warmup_epochs == 3 * 5 + 2 * 5
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == list(range(-25, 0))


def test_a_class_at_rest_leaves_its_batch_and_the_next_group_has_its_own_numbers():
    cfg = replace(FAST, trigger_epochs=24, patience=1, early_stop=1, gain=0.9, cost=0.1, outlier=1e9)
    epochs = [e.epoch for e in neural_cleanse(planted(), images(), cfg, CPU) if isinstance(e, EpochEnd)]
    assert epochs[0] == -48
    assert -24 in epochs
    assert len(epochs) < 48


def test_closing_in_the_search_leaves_the_network_untouched():
    net = planted()
    before = net.net.linear.weight.clone()
    run = neural_cleanse(net, images(), FAST, CPU)
    for event in run:
        if isinstance(event, StepEnd) and event.step == 1:
            run.close()
            break
    assert torch.equal(net.net.linear.weight, before)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_a_fine_tuning_that_diverges_ends_as_failed():
    net = planted()
    before = net.net.linear.weight.clone()
    cfg = replace(FAST, trigger_epochs=8, outlier=0.5, lr=1e12)
    last = list(neural_cleanse(net, images(), cfg, CPU))[-1]
    assert isinstance(last, Failed)
    assert last.epoch == -1
    assert torch.equal(net.net.linear.weight, before)


def test_classes_are_checked_against_the_network():
    details = list(
        neural_cleanse(planted(), images(), replace(FAST, trigger_epochs=1, classes=(0, 2, 4)), CPU)
    )[-1].details
    assert list(details["norms"]) == ["0", "2", "4"]
    with pytest.raises(ConfigError, match=r"`classes`.* 6\b.* 5\b"):
        list(neural_cleanse(planted(), images(), replace(FAST, classes=(0, 1, 6)), CPU))
    two = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match=r" 3\b.* 2\b"):
        list(neural_cleanse(two, images(), FAST, CPU))
