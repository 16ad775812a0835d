"""What the baselines share: their configs and table, batches, a network under repair, fine-tuning."""

import importlib
import inspect
import json
import math
import typing
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npd_core.config.baselines import (
    ANPConfig,
    EPConfig,
    FineTuneConfig,
    FPConfig,
    IBAUConfig,
    NADConfig,
    NCConfig,
)
from npd_core.config.presets import BASELINE_DEFAULTS, baseline_config
from npd_core.data.load import ImageSet
from npd_core.defenses import CONFIGS, DEFENSES, get_defense
from npd_core.defenses.common import (
    Repair,
    Step,
    accuracy,
    augmented,
    batch_norms,
    captured,
    fine_tune,
    last_linear,
)
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd, to_record
from npd_core.models import Normalized, build_model
from npd_core.training.guard import COLLAPSED, NOT_FINITE

CPU = torch.device("cpu")
WIDTH = 8
"""With 4, oneDNN's channels-last backward pass of the strided 1x1 convolution writes past its buffer on
AVX2."""
PLAIN = FineTuneConfig(epochs=2, batch_size=8, pad=0, flip=False, precision="fp32")


def network(seed=0):
    torch.manual_seed(seed)
    return build_model("preact_resnet18", 5, WIDTH).eval()


def images(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, 5, (count,), generator=generator))


def labeled(net, shift, count=20):
    """Images with the labels the network gives them, or with wrong ones: its accuracy is 1, or 0."""
    data = images(count)
    with torch.no_grad():
        return ImageSet(data.images, (net(data.images / 255).argmax(1) + shift) % 5)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def run(generator):
    """The events of a fine-tuning, and what it returned."""
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


# --- the table and the configs


@pytest.mark.parametrize("name", CONFIGS)
def test_every_row_leads_to_a_function_that_takes_its_config(name):
    row = DEFENSES[name]
    module, _, attribute = row.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    hints = typing.get_type_hints(function)
    assert list(inspect.signature(function).parameters)[:4] == ["net", "clean", "cfg", "device"]
    assert hints["cfg"] is row.config
    assert inspect.isgeneratorfunction(function)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_being_written_down(name):
    for dataset in ("cifar10", "tiny_imagenet"):
        cfg = baseline_config(name, dataset, flip=False, seed=3)
        assert type(cfg) is CONFIGS[name]
        assert not cfg.flip
        assert type(cfg).from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_presets_hold_what_differs_by_data_set():
    assert baseline_config("ep", "tiny_imagenet") == EPConfig(u=4.0)
    assert baseline_config("fp", "tiny_imagenet") == FPConfig(epochs=200, schedule="plateau")
    assert baseline_config("fp", "gtsrb", epochs=3) == FPConfig(epochs=3)
    for table in BASELINE_DEFAULTS.values():
        assert set(table) <= set(CONFIGS)


def test_classes_come_back_from_json_as_a_tuple():
    cfg = NCConfig(classes=(0, 2, 4))
    assert json.loads(json.dumps(cfg.to_dict()))["classes"] == [0, 2, 4]
    assert NCConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (FPConfig, {"batch_size": 1}),
        (FPConfig, {"flip": 1}),
        (FPConfig, {"pad": -1}),
        (FPConfig, {"lr": 0.0}),
        (FPConfig, {"lr": math.nan}),
        (FPConfig, {"momentum": 1.0}),
        (FPConfig, {"weight_decay": -1e-4}),
        (FPConfig, {"step": 0.0}),
        (FPConfig, {"tolerance": 1.5}),
        (FPConfig, {"holdout": 0.6}),
        (NADConfig, {"epochs": 0}),
        (NADConfig, {"p": 0}),
        (NADConfig, {"betas": (1.0, 1.0)}),
        (NADConfig, {"betas": (1.0, -1.0, 1.0)}),
        (NCConfig, {"classes": (0, 0, 1)}),
        (NCConfig, {"classes": (0, 1)}),
        (NCConfig, {"classes": (-1, 0, 1)}),
        (NCConfig, {"cost_up": 0.5}),
        (NCConfig, {"success": 1.1}),
        (NCConfig, {"trigger_betas": (0.5, 1.0)}),
        (NCConfig, {"trigger_epochs": True}),
        (ANPConfig, {"alpha": 1.2}),
        (ANPConfig, {"eps": -0.1}),
        (ANPConfig, {"iterations": 0}),
        (ANPConfig, {"oracle_step": 0.0}),
        (IBAUConfig, {"rounds": 0}),
        (IBAUConfig, {"fixed_point_steps": 2.5}),
        (IBAUConfig, {"patched": 2.0}),
        (EPConfig, {"bin_width": 0.0}),
        (EPConfig, {"u": math.inf}),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(config, change):
    with pytest.raises(ConfigError, match=f"`{next(iter(change))}`"):
        config(**change)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (FPConfig, {"schedule": "cosin"}),
        (FPConfig, {"precision": "fp16"}),
        (NADConfig, {"levels": "four"}),
        (ANPConfig, {"select": "test"}),
        (IBAUConfig, {"space": "pixels"}),
        (EPConfig, {"batch": "poisoned"}),
    ],
)
def test_an_unknown_choice_is_refused(config, change):
    with pytest.raises(UnknownNameError, match=str(next(iter(change.values())))):
        config(**change)


def test_unknown_settings_and_defenses_are_refused():
    with pytest.raises(UnknownNameError, match="'tolerance'"):
        FPConfig.from_dict({"tolerence": 0.1})
    with pytest.raises(UnknownNameError, match=r"defense 'fpp'.*'fp'"):
        get_defense("fpp")


TINY = {"batch_size": 8, "pad": 1, "flip": False, "precision": "fp32", "seed": 1}
SHORT = {
    "fp": {"epochs": 1, "step": 0.5},
    "nad": {"epochs": 1, "teacher_epochs": 1},
    "ep": {"batch": "clean", "u": 1.0},
}


@pytest.mark.parametrize("arch", ["preact_resnet18", "vgg19_bn"])
@pytest.mark.parametrize("name", SHORT)
def test_both_architectures_can_be_repaired(name, arch):
    torch.manual_seed(0)
    net = build_model(arch, 5, WIDTH).requires_grad_(False).train()
    data = ImageSet(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 5)
    before = state(net)
    events = list(
        get_defense(name).run(net, data, baseline_config(name, "signs", **TINY, **SHORT[name]), CPU)
    )
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert all(json.loads(json.dumps(to_record(event)))["type"] for event in (events[0], events[-1]))
    assert not same(state(net), before)
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


# --- images


def test_an_epoch_takes_every_image_once_and_other_seeds_another_order():
    data = ImageSet(images(21).images, torch.arange(21))
    orders = []
    for seed in (0, 0, 1):
        epoch = list(augmented(data, replace(PLAIN, seed=seed), CPU).shuffled())
        assert [len(y) for _, y in epoch] == [8, 8, 5]
        orders.append(torch.cat([y for _, y in epoch]).tolist())
        for x, y in epoch:
            assert x.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(x, data.images[y].float() / 255, rtol=0, atol=0)
    assert sorted(orders[0]) == list(range(21))
    assert orders[0] == orders[1] != orders[2]


def test_a_single_left_over_image_joins_the_batch_before():
    batches = augmented(images(17), PLAIN, CPU)
    assert [len(y) for _, y in batches.shuffled()] == [8, 9]
    assert batches.steps == 2


def test_images_are_augmented_anew_each_epoch_and_only_where_configured():
    data = images(4)
    cfg = replace(PLAIN, pad=2, flip=True)
    moving, still = augmented(data, cfg, CPU), augmented(data, PLAIN, CPU)
    everything = torch.arange(4)
    assert not torch.equal(moving.take(everything)[0], moving.take(everything)[0])
    assert torch.equal(still.take(everything)[0], data.images.float() / 255)


def test_one_clean_image_is_too_few():
    with pytest.raises(ConfigError, match=r"2 .*got 1\b"):
        augmented(images(1), PLAIN, CPU)


# --- the network


def test_views_of_the_network():
    net = network()
    norms = batch_norms(net)
    assert len(norms) == 16
    assert next(iter(norms)) == "layer1.0.bn1"
    assert norms["layer4.1.bn2"] is net.net.layer4[1].bn2
    assert last_linear(net) is net.net.linear
    with pytest.raises(ConfigError, match=r"`nn.Linear`"):
        last_linear(Normalized(nn.Conv2d(3, 3, 1), (0,) * 3, (1,) * 3))


def test_captured_outputs_keep_the_order_and_no_hook_is_left():
    net = network()
    x = torch.rand(2, 3, 16, 16)
    second, first = net.net.layer1[1], net.net.layer1[0]
    with captured([second, first]) as outputs:
        net(x)
    with captured([second], inputs=True, read=lambda h: h.sum(1)) as inputs:
        net(x)
    torch.testing.assert_close(inputs[0], outputs[1].sum(1), rtol=0, atol=0)
    torch.testing.assert_close(outputs[0], second(outputs[1]), rtol=0, atol=0)
    with pytest.raises(RuntimeError), captured([first]):
        net(torch.rand(2, 5, 16, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_accuracy_is_the_share_of_right_answers():
    net = network()
    right, wrong = labeled(net, shift=0, count=10), labeled(net, shift=1, count=10)
    mixed = torch.where(torch.arange(10) < 3, wrong.labels, right.labels)
    assert accuracy(net, ImageSet(right.images, mixed), CPU) == pytest.approx(0.7)


def test_a_repair_leaves_the_last_good_state_after_an_error():
    net = network()
    before = state(net)

    def fail():
        with Repair(net, CPU):
            net.train().requires_grad_(True)
            net(torch.rand(4, 3, 16, 16)).sum().backward()
            with torch.no_grad():
                net.net.linear.weight.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(state(net), before)
    assert not net.training
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_a_repair_says_its_epoch_seconds_and_findings():
    repair = Repair(network(), CPU)
    assert repair.failed("why") == Failed("why", -1, 0.0)
    repair.keep(4)
    with repair.clock:
        torch.rand(10)
    assert repair.clock.seconds > 0
    assert repair.finished(pruned=[1]) == Finished(4, repair.clock.seconds, details={"pruned": [1]})


# --- fine-tuning


def naive(net, data, cfg, lrs):
    """SGD written out: velocity and decay by hand, the order of images from the same generator."""
    batches = augmented(data, cfg, CPU)
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    net.train()
    for lr in lrs:
        for x, y in batches.shuffled():
            params = [p.requires_grad_() for p in net.parameters()]
            gradients = torch.autograd.grad(F.cross_entropy(net(x), y), params)
            with torch.no_grad():
                for p, g, v in zip(params, gradients, velocity, strict=True):
                    v.mul_(cfg.momentum).add_(g + cfg.weight_decay * p)
                    p.sub_(lr * v)
    return state(net.eval())


@pytest.mark.parametrize(("schedule", "lrs"), [("cosine", [0.004, 0.003, 0.001]), ("constant", [0.004] * 3)])
def test_fine_tuning_is_sgd_on_the_cross_entropy(schedule, lrs):
    cfg = replace(PLAIN, schedule=schedule, lr=0.004)  # small: at more, rounding decides which ReLU opens
    net, data = network(), images()
    repair = Repair(net, CPU)
    events, reason = run(fine_tune(repair, augmented(data, cfg, CPU), cfg, epochs=3))
    assert reason == ""
    expected = naive(network(), data, cfg, lrs)
    for name, value in state(net).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert [type(e).__name__ for e in events] == (["StepEnd"] * 3 + ["EpochEnd"]) * 3
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [0, 1, 2]
    steps = [float(e.losses["bn"]) for e in events if isinstance(e, StepEnd) and e.epoch == 1]
    assert events[7].losses["total"] == pytest.approx(sum(steps) / 3)
    assert repair.epoch == 2
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_plateau_divides_the_learning_rate_once_the_loss_has_stood_still():
    moved = []
    net = network()
    cfg = replace(PLAIN, schedule="plateau", momentum=0.0, weight_decay=0.0, lr=0.01)
    bias = net.net.linear.bias
    last = bias.detach().clone()

    def slope(x, y):
        logits = net(x).float()
        return Step(F.one_hot(y, 5).float(), {"total": bias.sum() - bias.sum().detach() + 0 * logits.sum()})

    for event in fine_tune(Repair(net, CPU), augmented(images(4), cfg, CPU), cfg, epochs=14, step=slope):
        if isinstance(event, EpochEnd):
            moved.append(float((last - bias.detach()).mean()))
            last = bias.detach().clone()
    assert moved[:12] == pytest.approx([0.01] * 12, rel=1e-3)
    assert moved[12:] == pytest.approx([0.001] * 2, rel=1e-3)


def test_what_must_stay_true_of_the_weights_is_restored_after_every_update():
    net = network()
    linear = net.net.linear
    for event in fine_tune(
        Repair(net, CPU),
        augmented(images(), PLAIN, CPU),
        PLAIN,
        epochs=1,
        after=lambda: linear.weight[:, :7].zero_(),
    ):
        if isinstance(event, StepEnd):
            assert not linear.weight[:, :7].any()
            assert linear.weight[:, 7:].all()


def test_closing_mid_epoch_keeps_the_last_completed_epoch():
    net = network()
    data = labeled(net, shift=1)
    kept = None
    with Repair(net, CPU) as repair:
        training = fine_tune(repair, augmented(data, PLAIN, CPU), PLAIN, epochs=5, first=-5)
        for event in training:
            if isinstance(event, EpochEnd) and event.epoch == -4:
                kept = state(net)
            if isinstance(event, StepEnd) and (event.epoch, event.step) == (-3, 1):
                training.close()
                break
        assert repair.epoch == -4
        assert not same(state(net), kept)
    assert same(state(net), kept)


def test_not_a_number_ends_with_the_last_good_state():
    net = network()
    data = labeled(net, shift=1)
    good, reasons = [], []
    with Repair(net, CPU) as repair:

        def training():
            reasons.append((yield from fine_tune(repair, augmented(data, PLAIN, CPU), PLAIN, epochs=5)))

        for event in training():
            if isinstance(event, EpochEnd):
                good.append(state(net))
                with torch.no_grad():
                    net.net.linear.weight.fill_(math.nan)
    assert reasons[0].startswith(NOT_FINITE)
    assert len(good) == 1
    assert repair.epoch == 0
    assert same(state(net), good[0])


def test_collapsed_accuracy_ends_with_the_state_before():
    net = network()
    data = labeled(net, shift=0)
    before = state(net)

    def always_wrong(x, y):
        loss = F.cross_entropy(net(x), y)
        return Step(-F.one_hot(y, 5).float(), {"bn": loss, "total": loss})

    with Repair(net, CPU) as repair:
        events, reason = run(
            fine_tune(repair, augmented(data, PLAIN, CPU), PLAIN, epochs=9, step=always_wrong)
        )
    assert reason.startswith(COLLAPSED)
    assert [e.kept for e in events if isinstance(e, EpochEnd)] == [False, False]
    assert repair.epoch == -1
    assert same(state(net), before)


def test_no_epochs_change_nothing():
    net = network()
    before = state(net)
    assert run(fine_tune(Repair(net, CPU), augmented(images(), PLAIN, CPU), PLAIN, epochs=0)) == ([], "")
    assert same(state(net), before)
