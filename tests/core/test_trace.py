"""One step in slow motion is the step that the trainer takes, and what it tells is what a slow computation
finds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from npd_core.config.npd import BN_MODES, NPDConfig
from npd_core.data.load import ImageSet
from npd_core.events import StepEnd
from npd_core.models import build_model
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.polarizer.trace import start, trace
from npd_core.polarizer.training import Trainer, train_polarizer

LAYER, SIZE, CLASSES = "stream:layer3.0", 16, 5
CFG = NPDConfig(precision="fp32", inner_steps=3, early_stop=None, lr=0.05)


def network():
    torch.manual_seed(0)
    return build_model("preact_resnet18", CLASSES, 4).eval()


def image(seed=0):
    return torch.randint(
        0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def moved(cfg, scale=0.1):
    """A net whose theta is not the identity: there f_hat is not f_w."""
    net = PolarizedNet(network(), LAYER, SIZE)
    with torch.no_grad():
        for p in net.polarizer.parameters():
            p.add_(scale * torch.randn_like(p))
    return net


def theta(net):
    return {name: value.detach().clone() for name, value in net.polarizer.named_parameters()}


@pytest.mark.parametrize("attack_on", ["base", "polarized"])
@pytest.mark.parametrize("bn_mode", BN_MODES)
def test_the_trace_is_the_first_step_of_a_training_on_this_image(attack_on, bn_mode):
    cfg = replace(CFG, attack_on=attack_on, bn_mode=bn_mode, epochs=1, warmup_epochs=0, batch_size=2)
    data = ImageSet(torch.stack([image(), image()]), torch.tensor([2, 2]))
    trained, traced = PolarizedNet(network(), LAYER, SIZE), PolarizedNet(network(), LAYER, SIZE)
    step = next(e for e in list(train_polarizer(trained, data, cfg)) if isinstance(e, StepEnd))
    start(traced, data, cfg)
    found = trace(traced, image(), 2, cfg)
    assert found.before.losses == pytest.approx({name: float(v) for name, v in step.losses.items()}, rel=2e-4)
    for name, value in theta(trained).items():
        torch.testing.assert_close(theta(traced)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attack_on", ["base", "polarized"])
def test_it_takes_the_trainers_own_step_bit_by_bit(attack_on):
    cfg = replace(CFG, attack_on=attack_on, early_stop=0.6)
    torch.manual_seed(1)
    one = moved(cfg)
    torch.manual_seed(1)
    other = moved(cfg)
    found = trace(one, image(), 2, cfg)
    data = ImageSet(torch.stack([image(), image(1)]), torch.tensor([2, 2]))
    trainer = Trainer(other, data, replace(cfg, cache=False), torch.device("cpu"))
    x, h, y = trainer.clean.x(torch.tensor([0])), trainer.clean.features(torch.tensor([0])), torch.tensor([2])
    losses = trainer.losses(x, h, y).losses
    total = sum(cfg.weights[name] * value for name, value in losses.items())
    trainer.update(
        torch.optim.SGD(trainer.params, lr=cfg.lr, momentum=0.9, weight_decay=cfg.weight_decay), total
    )
    assert {name: found.before.losses[name] for name in losses} == {
        name: float(v.detach()) for name, v in losses.items()
    }
    assert all(torch.equal(theta(one)[name], value) for name, value in theta(other).items())


@pytest.mark.parametrize("attack_on", ["base", "polarized"])
@pytest.mark.parametrize(
    ("norm", "rho", "how"), [("l2", 2.0, "sign"), ("linf", 0.15, "l2"), ("l1", 40.0, "raw")]
)
def test_every_number_by_a_slow_computation(attack_on, norm, rho, how):
    cfg = replace(CFG, attack_on=attack_on, norm=norm, rho=rho, inner_step=how, lambda4=0.7)
    net = moved(cfg)
    backdoored, old = network(), theta(net)
    attacked = backdoored if attack_on == "base" else net
    x, y = image()[None] / 255, 2
    found = trace(net, image(), y, cfg)

    with torch.no_grad():
        new = theta(net)
        net.polarizer.load_state_dict(old, strict=False)  # back to the theta that the step started from
        z = attacked(x)[0]
        k = max((c for c in range(CLASSES) if c != y), key=lambda c: float(z[c]))
    np.testing.assert_allclose(found.attacked, z, rtol=1e-4, atol=1e-5)
    assert (found.target, found.label, found.layer) == (k, y, LAYER)
    np.testing.assert_array_equal(found.image, x[0])

    delta = torch.zeros_like(x)
    for number, inner in enumerate(found.inner):
        np.testing.assert_allclose(inner.delta, delta[0], atol=1e-6)
        size = {"l2": delta.square().sum().sqrt(), "linf": delta.abs().max(), "l1": delta.abs().sum()}[norm]
        assert inner.norm == pytest.approx(float(size), rel=1e-4)
        assert inner.norm <= rho * (1 + 1e-5)
        var = delta.clone().requires_grad_()
        out = attacked((x + var).clamp(0, 1))[0]
        loss = -torch.log(out.softmax(0)[k])
        loss.backward()
        np.testing.assert_allclose(inner.logits, out.detach(), rtol=1e-4, atol=1e-5)
        assert inner.loss == pytest.approx(float(loss.detach()), rel=1e-4)
        if number == cfg.inner_steps:
            assert inner.gradient is None
            assert inner.unprojected is None
            break
        np.testing.assert_allclose(inner.gradient, var.grad[0], rtol=1e-3, atol=1e-6)
        g = torch.as_tensor(inner.gradient)[None]  # its own: a sign of almost nothing is anybody's
        way = {"sign": g.sign(), "l2": g / g.square().sum().sqrt(), "raw": g}[how]
        delta = delta - cfg.inner_lr * way
        size = {"l2": delta.square().sum().sqrt(), "linf": delta.abs().max(), "l1": delta.abs().sum()}[norm]
        assert inner.unprojected == pytest.approx(float(size), rel=1e-4)
        delta = delta.clamp(-rho, rho) if norm == "linf" else delta * min(1.0, rho / float(size))
    assert len(found.inner) == cfg.inner_steps + 1
    x_adv = (x + delta).clamp(0, 1)
    np.testing.assert_allclose(found.perturbed, x_adv[0], atol=1e-6)

    def losses():
        net.zero_grad()
        s, s_adv = net(x)[0].softmax(0).double(), net(x_adv)[0].softmax(0).double()
        wrong = max(float(s_adv[c].detach()) for c in range(CLASSES) if c != y)
        strongest = next(s_adv[c] for c in range(CLASSES) if c != y and float(s_adv[c].detach()) == wrong)
        terms = {
            "bn": -torch.log(s[y]),
            "asr": -torch.log(1 - s_adv[k]),
            "bce1": -torch.log(s_adv[y]),
            "bce2": -torch.log(1 - strongest),
        }
        weights = {"bn": cfg.lambda1, "asr": cfg.lambda2, "bce1": cfg.lambda3, "bce2": 0.7}
        assert found.weights == weights
        return terms | {"total": sum(weights[name] * value for name, value in terms.items())}

    terms = losses()
    assert found.before.losses == pytest.approx(
        {name: float(v.detach()) for name, v in terms.items()}, rel=1e-3
    )
    np.testing.assert_allclose(found.before.clean, net(x)[0].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.before.perturbed, net(x_adv)[0].detach(), rtol=1e-3, atol=1e-4)
    terms["total"].backward()
    for part, (name, p) in zip(found.parts, net.polarizer.named_parameters(), strict=True):
        step = -cfg.lr * (p.grad + cfg.weight_decay * p.detach())
        torch.testing.assert_close(new[name], p.detach() + step, rtol=1e-3, atol=1e-5)
        assert (part.name, part.numbers) == (name, p.numel())
        assert part.gradient == pytest.approx(float(p.grad.norm()), rel=2e-3)
        assert part.before == pytest.approx(float(p.detach().norm()), rel=1e-4)
        assert part.change == pytest.approx(float(step.norm()), rel=2e-3)
    net.polarizer.load_state_dict(new, strict=False)
    after = losses()
    assert found.after.losses == pytest.approx(
        {name: float(v.detach()) for name, v in after.items()}, rel=2e-3
    )
    np.testing.assert_allclose(found.after.perturbed, net(x_adv)[0].detach(), rtol=1e-3, atol=1e-4)
    assert found.after.losses["total"] < found.before.losses["total"]


def test_the_early_stop_asks_f_hat_and_never_f_w():
    cfg = replace(CFG, rho=50.0, inner_steps=12, inner_lr=0.2, early_stop=0.6, attack_on="polarized")
    found = trace(moved(cfg), image(), 2, cfg)
    reached = [int(inner.logits.argmax()) == found.target for inner in found.inner]
    assert found.stopped_early(cfg.inner_steps)
    assert reached[-1]
    assert not any(reached[1:-1])
    cfg = replace(cfg, attack_on="base")
    found = trace(moved(cfg), image(), 2, cfg)
    assert len(found.inner) == 13
    assert not found.stopped_early(cfg.inner_steps)


def test_without_weights_for_it_there_is_no_inner_level():
    cfg = replace(CFG, lambda2=0.0, lambda3=0.0)
    net = moved(cfg)
    found = trace(net, image(), 2, cfg)
    assert found.inner == ()
    assert set(found.before.losses) == set(found.after.losses) == {"bn", "total"}
    assert found.before.losses["bn"] == found.before.losses["total"]
    np.testing.assert_array_equal(found.perturbed, found.image)
    assert not found.stopped_early(cfg.inner_steps)
    assert math.isfinite(found.parts[0].change)


def test_the_start_is_the_identity():
    net, data = (
        PolarizedNet(network(), LAYER, SIZE),
        ImageSet(torch.stack([image(s) for s in range(6)]), torch.arange(6) % 5),
    )
    state = start(net, data, replace(CFG, bn_mode="stats_fold", holdout=0.0))
    x = data.images / 255
    with torch.no_grad():
        torch.testing.assert_close(net(x), network()(x), rtol=1e-4, atol=1e-5)
        features = net.features(net.prefix(x))
    torch.testing.assert_close(state["bn.running_mean"], features.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
