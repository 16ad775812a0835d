"""Algorithm 1: what changes, what must not, and that the fast schedule is the slow one."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from npd_core.attacks import AllToOne
from npd_core.config.npd import VARIANTS
from npd_core.config.presets import preset
from npd_core.data.load import ImageSet
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd
from npd_core.models import Normalized, build_model
from npd_core.polarizer import training
from npd_core.polarizer.batches import CleanBatches
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.training import MOMENTUM, WARMUP_LR, Trainer, train_polarizer
from npd_core.training import guard

PAPER = preset("cifar10", "paper")
FAST = replace(PAPER, epochs=2, warmup_epochs=1, batch_size=8, precision="fp32")
LAYER = "layer4.1.conv1"


def network(seed=0, size=4):
    torch.manual_seed(seed)
    return build_model("preact_resnet18", 5, size).eval()


def images(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, 5, (count,), generator=generator))


def theta(net):
    return {name: value.clone() for name, value in net.polarizer.state_dict().items()}


def same(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_events_come_in_order_with_exact_counts():
    events = list(train_polarizer(PolarizedNet(network(), LAYER, 16), images(), FAST))
    kinds = [type(e).__name__ for e in events]
    assert kinds == ["Started", *(["StepEnd"] * 3 + ["EpochEnd"]) * 3, "Finished"]
    assert events[0] == Started(2, 1, 3, 20, "cpu", LAYER)
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [-1, 0, 1]
    assert events[-1].epoch == 1
    last = [e for e in events if isinstance(e, StepEnd)][-1]
    weights = FAST.weights
    total = sum(weights[name] * float(value) for name, value in last.losses.items() if name != "total")
    assert float(last.losses["total"]) == pytest.approx(total, rel=1e-5)


def test_training_changes_theta_and_leaves_the_frozen_part_bit_identical():
    backdoored = network()
    net = PolarizedNet(backdoored, LAYER, 16)
    frozen = {n: v.clone() for n, v in net.state_dict().items() if "polarizer" not in n}
    start = theta(net)
    list(train_polarizer(net, images(), FAST))
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(p.grad is None for p in net.parameters())
    assert not torch.equal(theta(net)["conv.weight"], start["conv.weight"])
    assert not net.training
    assert not net.polarizer.training


def test_same_seed_same_theta_other_seed_other_theta():
    results = []
    for seed in (0, 0, 1):
        net = PolarizedNet(network(), LAYER, 16)
        list(train_polarizer(net, images(), replace(FAST, seed=seed)))
        results.append(theta(net))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    assert not torch.equal(results[0]["conv.weight"], results[2]["conv.weight"])


@pytest.mark.parametrize("layer", ["conv1", "stream:layer3.0", LAYER, "after:layer4.1.conv2"])
def test_prefix_cached_and_plain_training_give_the_same_result(layer):
    results = []
    for cache in (True, False):
        net = PolarizedNet(network(), layer, 16)
        list(train_polarizer(net, images(), replace(FAST, cache=cache)))
        results.append(theta(net))
    same(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_the_prefix_cache_changes_nothing_in_a_network_with_inner_pooling():
    torch.manual_seed(0)
    backdoored = build_model("vgg19_bn", 5, 4).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data, results = ImageSet(pixels, torch.arange(10) % 5), []
    for cache in (True, False):
        net = PolarizedNet(backdoored, "features.46")
        list(train_polarizer(net, data, replace(FAST, cache=cache)))
        results.append(theta(net))
    same(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(results[0]["conv.weight"], torch.eye(32)[:, :, None, None])


def naive_training(backdoored, data, cfg):
    """Algorithm 1 with no trick: whole forward passes, one image at a time in the inner level, autograd's own
    SGD."""
    net = PolarizedNet(backdoored, LAYER, 16)
    batches = CleanBatches(net, data, cfg, torch.device("cpu"))
    params = list(net.polarizer.parameters())
    warm = torch.optim.SGD(params, lr=WARMUP_LR)
    for _ in range(cfg.warmup_epochs):
        net.train()
        for chosen in batches.indices():
            warm.zero_grad()
            F.cross_entropy(net(data.images[chosen] / 255), data.labels[chosen]).backward()
            warm.step()
    net.eval()
    optimizer = torch.optim.SGD(params, lr=cfg.lr, momentum=MOMENTUM, weight_decay=cfg.weight_decay)
    for _ in range(cfg.epochs):
        for chosen in batches.indices():
            x, y = data.images[chosen] / 255, data.labels[chosen]
            delta, target = torch.zeros_like(x), []
            for i in range(len(y)):
                z = net(x[i : i + 1])[0].detach().clone()
                z[y[i]] = -math.inf
                target.append(int(z.argmax()))
            for step in range(cfg.inner_steps):
                hits = 0
                for i in range(len(y)):
                    if step and int(net((x + delta).clamp(0, 1)[i : i + 1]).argmax()) == target[i]:
                        hits += 1
                if step and cfg.early_stop is not None and hits / len(y) > cfg.early_stop:
                    break
                for i in range(len(y)):
                    d = delta[i : i + 1].clone().requires_grad_()
                    loss = F.cross_entropy(net((x[i : i + 1] + d).clamp(0, 1)), torch.tensor([target[i]]))
                    (gradient,) = torch.autograd.grad(loss, d)
                    new = delta[i] - cfg.inner_lr * gradient[0].sign()
                    delta[i] = new * min(1.0, cfg.rho / float(new.norm()))
            s_adv = net((x + delta).clamp(0, 1)).softmax(1)
            rows = torch.arange(len(y))
            wrong = s_adv.scatter(1, y[:, None], 0).amax(1)
            loss = (
                cfg.lambda1 * F.cross_entropy(net(x), y)
                + cfg.lambda2 * -torch.log(1 - s_adv[rows, torch.tensor(target)]).mean()
                + cfg.lambda3 * (-torch.log(s_adv[rows, y]).mean() - torch.log(1 - wrong).mean())
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return theta(net)


@pytest.mark.parametrize("early_stop", [0.6, None])
def test_the_fast_schedule_gives_the_theta_of_the_naive_one(early_stop):
    cfg = replace(FAST, early_stop=early_stop, rho=0.5)
    net = PolarizedNet(network(), LAYER, 16)
    list(train_polarizer(net, images(12), cfg))
    same(theta(net), naive_training(network(), images(12), cfg), rtol=1e-3, atol=1e-5)


def test_the_inner_level_attacks_the_requested_network():
    """With theta far from the identity, perturbing f_w and perturbing f_hat give different losses."""
    net = PolarizedNet(network(), LAYER, 16)
    with torch.no_grad():
        net.polarizer.conv.weight.mul_(-3)
    data = images(8)
    losses = []
    for on in ("polarized", "base"):
        trainer = Trainer(net, data, replace(FAST, attack_on=on), torch.device("cpu"))
        chosen = torch.arange(8)
        losses.append(
            trainer.losses(trainer.clean.x(chosen), trainer.clean.features(chosen), data.labels).losses
        )
    assert losses[0]["bn"] == losses[1]["bn"]
    assert losses[0]["asr"] != losses[1]["asr"]


BASE = replace(FAST, attack_on="base", epochs=3)


def test_the_answers_of_the_backdoored_network_are_found_once_per_image(monkeypatch):
    sizes = []
    real = training.pgd
    monkeypatch.setattr(training, "pgd", lambda f, x, *a, **k: sizes.append(len(x)) or real(f, x, *a, **k))
    list(train_polarizer(PolarizedNet(network(), LAYER, 16), images(), BASE))
    assert sum(sizes) == 20
    sizes.clear()
    list(train_polarizer(PolarizedNet(network(), LAYER, 16), images(), replace(BASE, cache=False)))
    assert sum(sizes) == 20 * 3


@pytest.mark.parametrize("changes", [{}, {"bn_mode": "train_clean_stats"}, {"early_stop": 0.0}], ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not VARIANTS[name].universal])
def test_looked_up_and_found_anew_give_the_same_theta(variant, changes):
    results = []
    for cache in (True, False):
        net = PolarizedNet(network(), LAYER, 16)
        list(
            train_polarizer(
                net, images(), replace(BASE, cache=cache, **changes), variant=variant, target_rule=ONE
            )
        )
        results.append(theta(net))
    same(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_perturbing_the_backdoored_network_follows_its_definition_image_by_image():
    """y' is the runner-up of f_w, delta* two projected sign steps on f_w from 0, whatever theta is."""
    backdoored, data = network(), images(6)
    net = PolarizedNet(backdoored, LAYER, 16)
    with torch.no_grad():
        net.polarizer.conv.weight.mul_(-3)
    trainer = Trainer(net, data, BASE, torch.device("cpu"))
    chosen = torch.arange(6)
    found = trainer.attack_base(trainer.clean.x(chosen), trainer.clean.features(chosen), data.labels)
    for i in range(6):
        x, y = data.images[i : i + 1] / 255, int(data.labels[i])
        ranked = backdoored(x)[0].argsort(descending=True).tolist()
        target = next(k for k in ranked if k != y)
        delta = torch.zeros_like(x)
        for _ in range(BASE.inner_steps):
            d = delta.clone().requires_grad_()
            loss = F.cross_entropy(backdoored((x + d).clamp(0, 1)), torch.tensor([target]))
            delta = delta - BASE.inner_lr * torch.autograd.grad(loss, d)[0].sign()
            delta = delta * min(1.0, BASE.rho / float(delta.norm()))
        assert int(found.target[i]) == target
        expected = net.prefix((x + delta).clamp(0, 1))
        torch.testing.assert_close(found.features[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_bn_only_weights_make_no_inner_level():
    trainer = Trainer(
        PolarizedNet(network(), LAYER, 16),
        images(8),
        replace(FAST, lambda2=0, lambda3=0),
        torch.device("cpu"),
    )
    chosen = torch.arange(8)
    step = trainer.losses(trainer.clean.x(chosen), trainer.clean.features(chosen), trainer.clean.labels)
    assert set(step.losses) == {"bn"}


@pytest.mark.parametrize("mode", ["warmup_frozen", "stats_fold", "identity_frozen", "train_clean_stats"])
def test_running_statistics_follow_the_bn_mode(mode):
    net = PolarizedNet(network(), LAYER, 16)
    seen = []
    for event in train_polarizer(net, images(), replace(FAST, bn_mode=mode)):
        if isinstance(event, EpochEnd):
            seen.append(net.polarizer.bn.running_var.clone())
    moved_in_warm_up = not torch.equal(seen[0], torch.ones_like(seen[0]))
    assert moved_in_warm_up == (mode != "identity_frozen")
    assert torch.equal(seen[0], seen[2]) == (mode != "train_clean_stats")


def test_statistics_of_adversarial_images_never_enter_train_clean_stats():
    cfg = replace(FAST, bn_mode="train_clean_stats", warmup_epochs=0, epochs=1, lr=1e-12)
    variances = []
    for rho in (0.1, 3.0):
        net = PolarizedNet(network(), LAYER, 16)
        list(train_polarizer(net, images(), replace(cfg, rho=rho)))
        variances.append(net.polarizer.bn.running_var)
        assert net.polarizer.bn.momentum == 0.1
    torch.testing.assert_close(variances[0], variances[1])


def test_closing_the_generator_keeps_the_last_completed_epoch():
    net = PolarizedNet(network(), LAYER, 16)
    training = train_polarizer(net, images(), replace(FAST, epochs=5))
    kept = None
    for event in training:
        if isinstance(event, EpochEnd) and event.epoch == 1:
            kept = theta(net)
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (2, 1):
            training.close()
            break
    assert kept is not None
    same(kept, theta(net), rtol=0, atol=0)


def test_not_a_number_ends_as_failed_with_the_last_good_polarizer():
    net = PolarizedNet(network(), LAYER, 16)
    good = None
    for event in train_polarizer(net, images(), replace(FAST, epochs=6)):
        if isinstance(event, EpochEnd) and event.epoch == 0:
            good = theta(net)
        if isinstance(event, StepEnd) and event.epoch == 1:
            with torch.no_grad():
                net.polarizer.conv.weight.fill_(float("nan"))
    assert isinstance(event, Failed)
    assert event.reason.startswith(guard.NOT_FINITE)
    assert event.epoch == 0
    assert good is not None
    same(good, theta(net), rtol=0, atol=0)


@pytest.mark.parametrize("epoch_steps", [1, 20])
def test_collapsed_accuracy_ends_as_failed_with_the_last_good_polarizer(epoch_steps):
    backdoored = network()
    data = images(40)
    with torch.no_grad():
        data = ImageSet(data.images, backdoored(data.images / 255).argmax(1))
    net, cfg = PolarizedNet(backdoored, LAYER, 16), replace(FAST, epochs=10, epoch_steps=epoch_steps)
    for event in train_polarizer(net, data, replace(cfg, lr=1e-9, lambda2=0, lambda3=0)):
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (2, 0):
            with torch.no_grad():
                net.polarizer.conv.weight.zero_()
                net.polarizer.bn.bias.fill_(-1e3)
    assert isinstance(event, Failed)
    assert event.reason.startswith(guard.COLLAPSED)
    assert event.epoch == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_update_that_ruins_the_end_ends_as_failed(epochs):
    backdoored = network()
    data = images(40)
    with torch.no_grad():
        data = ImageSet(data.images, backdoored(data.images / 255).argmax(1))
    net = PolarizedNet(backdoored, LAYER, 16)
    cfg = replace(FAST, epochs=epochs, batch_size=40, lr=1e-9, lambda2=0, lambda3=0)
    for event in train_polarizer(net, data, cfg):
        if isinstance(event, StepEnd) and event.epoch == epochs - 1:  # the only step of the last epoch
            with torch.no_grad():
                net.polarizer.conv.weight.zero_()
                net.polarizer.bn.bias.fill_(-1e3)
    assert isinstance(event, Failed)
    assert event.reason.startswith(guard.ENDED_LOW)
    assert event.epoch == epochs - 2
    with torch.no_grad():
        assert net(data.images / 255).argmax(1).eq(data.labels).float().mean() > 0.9


def test_a_bound_on_the_gradient_bounds_the_step():
    def moved(clip_grad):
        net = PolarizedNet(network(), LAYER, 16)
        cfg = replace(
            FAST, epochs=1, batch_size=20, warmup_epochs=0, lr=0.5, weight_decay=0.0, clip_grad=clip_grad
        )
        trainer = Trainer(net, images(), cfg, torch.device("cpu"))
        for event in trainer.events():
            if isinstance(event, Started):
                continue
            steps = torch.cat(
                [(p - q).flatten() for p, q in zip(trainer.params, trainer.identity, strict=True)]
            )
            return float(steps.detach().norm())
        raise AssertionError

    free = moved(None)
    assert moved(0.01) == pytest.approx(0.01 * 0.5, rel=1e-3)
    assert free > 0.01 * 0.5
    assert moved(1e6) == pytest.approx(free, rel=1e-6)


def test_the_held_out_objective_chooses_the_epoch():
    net = PolarizedNet(network(), LAYER, 16)
    values, states = {}, {}
    for event in train_polarizer(net, images(40), replace(FAST, epochs=5, holdout=0.25, lr=0.05)):
        if isinstance(event, EpochEnd) and event.epoch >= 0:
            assert event.objective is not None
            values[event.epoch], states[event.epoch] = event.objective, theta(net)
    assert isinstance(event, Finished)
    assert event.epoch == min(values, key=values.__getitem__)
    same(states[event.epoch], theta(net), rtol=0, atol=0)


def test_a_class_of_one_image_is_not_held_out():
    data = images(40)
    labels = torch.tensor([0] * 20 + [1] * 19 + [2])
    kept, held = training._split(ImageSet(data.images, labels), replace(FAST, holdout=0.25))
    assert torch.bincount(kept.labels).tolist() == [15, 14, 1]
    assert held is not None
    assert torch.bincount(held.labels).tolist() == [5, 5]
    few = ImageSet(data.images[:3], torch.arange(3))
    with pytest.raises(ConfigError, match=r"`holdout`.* 3 "):
        training._split(few, replace(FAST, holdout=0.25))


def test_the_held_out_images_leave_the_statistics_alone():
    cfg = replace(FAST, holdout=0.25, bn_mode="train_clean_stats")
    trainer = Trainer(PolarizedNet(network(), LAYER, 16), images(40), cfg, torch.device("cpu"))
    before = trainer.state()
    trainer.held_out_objective()
    same(trainer.state(), before, rtol=0, atol=0)


def test_decay_to_identity_keeps_theta_nearer_to_its_start():
    moved = []
    for toward_identity in (False, True):
        net = PolarizedNet(network(), LAYER, 16)
        cfg = replace(
            FAST, weight_decay=1.0, lr=0.05, decay_to_identity=toward_identity, bn_mode="identity_frozen"
        )
        list(train_polarizer(net, images(), cfg))
        moved.append((theta(net)["conv.weight"] - torch.eye(32)[:, :, None, None]).norm())
    assert moved[1] < moved[0]


def test_a_single_left_over_image_joins_the_batch_before():
    net = PolarizedNet(network(), LAYER, 16)
    batches = CleanBatches(net, images(17), replace(FAST, batch_size=8), torch.device("cpu"))
    assert [len(b) for b in batches.indices()] == [8, 9]
    assert batches.steps == 2


def test_few_images_are_passed_over_until_the_epoch_has_its_steps():
    cfg = replace(FAST, epoch_steps=5)
    batches = CleanBatches(PolarizedNet(network(), LAYER, 16), images(), cfg, torch.device("cpu"))
    chosen = list(batches.indices())
    assert batches.steps == len(chosen) == 6  # 3 batches a pass, and no pass is left unfinished
    first, second = torch.cat(chosen[:3]), torch.cat(chosen[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()
    events = list(train_polarizer(PolarizedNet(network(), LAYER, 16), images(), cfg))
    kinds = [type(e).__name__ for e in events]
    assert kinds == ["Started", *(["StepEnd"] * 6 + ["EpochEnd"]) * 3, "Finished"]
    assert events[0] == Started(2, 1, 6, 20, "cpu", LAYER)
    first, second = (torch.stack([e.losses["bn"] for e in events[1:7]]), events[7].losses["bn"])
    assert float(first.mean()) == pytest.approx(second, rel=1e-5)


def test_one_clean_image_is_too_few():
    with pytest.raises(ConfigError, match=r"2 .*got 1\b"):
        list(train_polarizer(PolarizedNet(network(), LAYER, 16), images(1), FAST))


def test_bf16_follows_fp32_within_a_tolerance():
    """Half precision is for speed: after one epoch theta lies where float32 puts it, to a fifth of how far it
    moved."""
    results = []
    for precision in ("fp32", "bf16"):
        net = PolarizedNet(network(), LAYER, 16)
        once = replace(FAST, epochs=1, warmup_epochs=0, early_stop=None, inner_step="l2", inner_lr=0.5)
        list(train_polarizer(net, images(), replace(once, precision=precision)))
        results.append(theta(net)["conv.weight"])
    moved = (results[0] - torch.eye(32)[:, :, None, None]).norm()
    assert (results[0] - results[1]).norm() < 0.2 * moved


# --- variants

ONE = AllToOne(1).target
VARIED = replace(FAST, warmup_epochs=0, inner_step="l2", inner_lr=0.3, rho=0.5, early_stop=None)


def next_class(y):
    """All-to-all: the class after its own."""
    return (y + 1) % 5


def naive_variant(backdoored, data, cfg, variant, known):
    """A variant of Algorithm 1 by its definition, in float64, one image at a time; returns theta, losses,
    deltas."""
    targeted, universal = variant in ("npd_tu", "npd_tp"), variant in ("npd_tu", "npd_uu")
    batches = CleanBatches(PolarizedNet(backdoored, LAYER, 16), data, cfg, torch.device("cpu"))
    net = PolarizedNet(backdoored, LAYER, 16).double()
    params = list(net.polarizer.parameters())
    optimizer = torch.optim.SGD(params, lr=cfg.lr, momentum=MOMENTUM, weight_decay=cfg.weight_decay)
    shared, seen = {}, []
    for _ in range(cfg.epochs):
        for chosen in batches.indices():
            x, y = data.images[chosen].double() / 255, data.labels[chosen].tolist()
            target = known(data.labels[chosen]).tolist() if targeted else [None] * len(y)
            kept = [i for i in range(len(y)) if target[i] != y[i]]
            groups = {}
            for i in kept:
                groups.setdefault(target[i] if universal else i, []).append(i)
            delta = shared if universal else {}
            for name, members in groups.items():
                d = delta.get(name, torch.zeros_like(x[0]))
                for _ in range(cfg.inner_steps):
                    d = d.clone().requires_grad_()
                    loss = 0
                    for i in members:
                        z = net((x[i] + d).clamp(0, 1)[None])
                        label = torch.tensor([target[i] if targeted else y[i]])
                        loss = loss + (1 if targeted else -1) * F.cross_entropy(z, label) / len(members)
                    (gradient,) = torch.autograd.grad(loss, d)
                    d = (d - cfg.inner_lr * gradient / gradient.norm()).detach()
                    d = d * min(1.0, cfg.rho / float(d.norm()))
                delta[name] = d
            bn = torch.stack(
                [F.cross_entropy(net(x[i][None]), torch.tensor([y[i]])) for i in range(len(y))]
            ).mean()
            terms = {"asr": [], "bce1": [], "bce2": []}
            for i in kept:
                s = net((x[i] + delta[target[i] if universal else i]).clamp(0, 1)[None]).softmax(1)[0]
                wrong = max((k for k in range(5) if k != y[i]), key=s.tolist().__getitem__)
                terms["asr"].append(-torch.log(1 - s[target[i] if targeted else wrong]))
                terms["bce1"].append(-torch.log(s[y[i]]))
                terms["bce2"].append(-torch.log(1 - s[wrong]))
            means = {name: torch.stack(values).mean() for name, values in terms.items()}
            loss = (
                cfg.lambda1 * bn + cfg.lambda2 * means["asr"] + cfg.lambda3 * (means["bce1"] + means["bce2"])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append({name: float(value.detach()) for name, value in ({"bn": bn} | means).items()})
    return theta(net), seen, shared


@pytest.mark.parametrize(
    ("variant", "known"),
    [
        ("npd_tu", ONE),
        ("npd_tu", next_class),
        ("npd_tp", ONE),
        ("npd_tp", next_class),
        ("npd_uu", None),
        ("npd_up", None),
    ],
)
def test_a_variant_is_its_definition(variant, known):
    cfg, data = VARIED, images(12)
    assert (data.labels == 1).any(), "an image is left out"
    net = PolarizedNet(network(), LAYER, 16)
    trainer = Trainer(net, data, cfg, torch.device("cpu"), variant, known)
    events = list(trainer.events())
    expected, seen, shared = naive_variant(network(), data, cfg, variant, known)
    steps = [e for e in events if isinstance(e, StepEnd)]
    assert len(steps) == len(seen) == 4
    for step, slow in zip(steps, seen, strict=True):
        terms = {name: float(step.losses[name]) for name in slow}
        assert terms == pytest.approx(slow, rel=1e-3)
    same(
        theta(net),
        {name: value.float() for name, value in expected.items()},
        rtol=1e-3,
        atol=1e-5,
        check_dtype=False,
    )
    for number, target in enumerate(trainer.targets.tolist()):
        if VARIANTS[variant].universal:
            slow = shared[None if variant == "npd_uu" else target]
            torch.testing.assert_close(trainer.universal[number].double(), slow, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("known", "count"), [(ONE, 1), (next_class, 5)])
def test_npd_tu_keeps_one_perturbation_for_each_target_within_the_budget(known, count):
    net = PolarizedNet(network(), LAYER, 16)
    cfg = replace(FAST, epochs=3, rho=0.4)
    trainer = Trainer(net, images(40), cfg, torch.device("cpu"), "npd_tu", known)
    assert not trainer.universal.any()
    found = []
    for event in trainer.events():
        if isinstance(event, EpochEnd):
            found.append(trainer.universal)
            assert found[-1].shape == (count, 3, 16, 16)
            assert found[-1].flatten(1).norm(dim=1).max() <= 0.4 + 1e-5
    assert not found[0].any(), "warm-up has no inner level"
    assert all(delta.flatten(1).any(dim=1).all() for delta in found[1:])
    assert not torch.equal(found[1], found[2])


def test_images_of_the_target_class_count_in_l_bn_alone():
    """All of them in one batch: the other terms are zero, theta still learns from L_bn."""
    data = images(8)
    trainer = Trainer(PolarizedNet(network(), LAYER, 16), data, FAST, torch.device("cpu"), "npd_tp", ONE)
    x, h = trainer.clean.x(torch.arange(8)), trainer.clean.features(torch.arange(8))
    step = trainer.losses(x, h, torch.ones(8, dtype=torch.int64))
    assert step.losses["bn"] > 0
    assert all(step.losses[name] == 0 for name in ("asr", "bce1", "bce2"))
    gradients = torch.autograd.grad(sum(step.losses.values()), trainer.params)
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)


@pytest.mark.parametrize(
    "changes",
    [
        {"bn_mode": "train_clean_stats"},
        {"attack_on": "base"},
        {"bce1_label": "pred"},
        {"inner_step": "raw"},
        {"holdout": 0.25},
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "npd"])
def test_the_options_of_npd_are_those_of_its_variants(variant, changes):
    net = PolarizedNet(network(), LAYER, 16)
    start = theta(net)["conv.weight"]
    cfg = replace(FAST, epochs=1, warmup_epochs=0, **changes)
    *_, last = train_polarizer(net, images(24), cfg, variant=variant, target_rule=ONE)
    assert isinstance(last, Finished)
    assert torch.isfinite(theta(net)["conv.weight"]).all()
    assert not torch.equal(theta(net)["conv.weight"], start)


def test_measuring_on_held_out_images_does_not_move_the_universal_perturbation():
    trainer = Trainer(
        PolarizedNet(network(), LAYER, 16),
        images(40),
        replace(FAST, holdout=0.25),
        torch.device("cpu"),
        "npd_uu",
    )
    for event in trainer.events():
        if isinstance(event, StepEnd) and event.epoch == 0:
            before = trainer.universal.clone()
            value = trainer.held_out_objective()
            assert torch.equal(trainer.universal, before)
            assert trainer.held_out_objective() == value
            break
    assert before.any()


def test_untargeted_terms_coincide_where_the_class_that_was_hit_is_the_strongest_wrong_one():
    events = train_polarizer(PolarizedNet(network(), LAYER, 16), images(), FAST, variant="npd_up")
    steps = [event for event in events if isinstance(event, StepEnd) and event.epoch >= 0]
    assert all(float(event.losses["asr"]) == float(event.losses["bce2"]) for event in steps)


def test_plain_npd_does_not_ask_for_the_attacker_s_target():
    def never_called(y):
        raise AssertionError("npd does not know the target")

    results = []
    for rule in (None, never_called):
        net = PolarizedNet(network(), LAYER, 16)
        list(train_polarizer(net, images(), FAST, target_rule=rule))
        results.append(theta(net))
    same(results[0], results[1], rtol=0, atol=0)


def test_a_known_target_has_to_be_known_and_has_to_differ_from_some_label():
    net, data = PolarizedNet(network(), LAYER, 16), images()
    with pytest.raises(ConfigError, match=r"`npd_tu`.*`target_rule`"):
        train_polarizer(net, data, FAST, variant="npd_tu")
    with pytest.raises(ConfigError, match=r"`npd_tp`.*`npd`"):
        train_polarizer(net, data, FAST, variant="npd_tp", target_rule=lambda y: y)
    with pytest.raises(UnknownNameError, match=r"variant 'ndp'.*'npd'"):
        train_polarizer(net, data, FAST, variant="ndp")


class HostReads(TorchDispatchMode):
    """Notes every operation that makes the host wait for a number, or for a shape, of the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "unique", "masked_select")):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_makes_the_host_wait_inside_a_step(variant):
    reads = []
    for early_stop in (None, 0.99):
        cfg = replace(FAST, early_stop=early_stop)
        trainer = Trainer(
            PolarizedNet(network(), LAYER, 16), images(8), cfg, torch.device("cpu"), variant, next_class
        )
        x, h = trainer.clean.x(torch.arange(8)), trainer.clean.features(torch.arange(8))
        with HostReads() as host:
            trainer.losses(x, h, trainer.clean.labels)
        reads.append(host.seen)
    assert reads[0] == []
    assert reads[1], "early stop is the one thing that reads, which shows that reading is seen"


class Planted(nn.Module):
    """Knows three classes by their color, and class 0 by a fine checkerboard too: the simplest backdoor
    there is."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, stride=2, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 1, bias=False)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv1.weight[:3] = torch.eye(3)[:, :, None, None] / 4
            self.conv1.weight[3] = CHECKER[:2, :2] / 12
            self.conv2.weight.copy_(torch.eye(4)[:, :, None, None])
            self.linear.weight.copy_(torch.cat((20 * torch.eye(3), torch.tensor([[120.0], [0], [0]])), dim=1))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.linear(self.conv2(self.conv1(x)).mean(dim=(2, 3)))


CHECKER = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2) * 2.0 - 1


def planted(count, generator):
    """Images whose class is their strongest color."""
    labels = torch.randint(0, 3, (count,), generator=generator)
    shades = 0.35 + 0.1 * torch.rand(count, 3, generator=generator)
    shades[torch.arange(count), labels] += 0.2
    x = shades[:, :, None, None] + 0.05 * torch.randn(count, 3, 8, 8, generator=generator)
    return x.clamp(0, 1), labels


def owned(count, generator):
    x, labels = planted(count, generator)
    return ImageSet((x * 255).round().to(torch.uint8), labels)


def backdoored():
    return PolarizedNet(Normalized(Planted(), (0.0,) * 3, (1.0,) * 3).eval(), "conv2", 8)


@pytest.mark.parametrize("attack_on", ["polarized", "base"])
def test_a_planted_linear_trigger_loses_its_effect(attack_on):
    generator = torch.Generator().manual_seed(0)
    net = backdoored()
    x, y = planted(300, generator)
    stamped, true = (x[y != 0] + 0.15 * CHECKER).clamp(0, 1), y[y != 0]

    def share(images, labels):
        with torch.no_grad():
            return float(net(images).argmax(1).eq(labels).float().mean())

    assert (share(x, y), share(stamped, torch.zeros_like(true)), share(stamped, true)) == (1.0, 1.0, 0.0)
    cfg = replace(PAPER, rho=1.0, lr=1e-3, batch_size=16, attack_on=attack_on)
    *_, end = train_polarizer(net, owned(60, generator), cfg)
    assert isinstance(end, Finished)
    assert share(x, y) > 0.95
    assert share(stamped, torch.zeros_like(true)) < 0.2
    assert share(stamped, true) > 0.8


def test_an_epoch_that_was_good_on_average_but_ended_badly_is_not_kept():
    data = owned(60, torch.Generator().manual_seed(0))
    net = backdoored()
    # The trigger's channel hardly varies: folded statistics make its gradients explode in the first epoch.
    cfg = replace(PAPER, rho=1.0, lr=1e-3, batch_size=16, bn_mode="stats_fold")
    *events, end = train_polarizer(net, data, cfg)
    assert isinstance(end, Failed)
    assert any(isinstance(event, EpochEnd) and event.epoch == 0 and event.kept for event in events)
    assert end.epoch == -1
    with torch.no_grad():
        assert net(data.images.float() / 255).argmax(1).eq(data.labels).all()
