"""I-BAU: the hypergradient against finite differences and dense Jacobians, the levels against slow
recomputations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import jacobian

from npd_core.config.baselines import IBAUConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.common import augmented
from npd_core.defenses.i_bau import Minimax, draw_patched, hypergradient, unlearn_implicitly
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd
from npd_core.models import build_model
from npd_core.models.normalized import Normalized
from npd_core.training.guard import NOT_FINITE

CPU = torch.device("cpu")
WIDTH = 8
"""With 4, oneDNN's channels-last backward pass of the strided 1x1 convolution writes past its buffer on
AVX2."""
FAST = IBAUConfig(rounds=2, batch_size=8, pad=1, flip=False, precision="fp32")


def network(seed=0):
    torch.manual_seed(seed)
    return build_model("preact_resnet18", 5, WIDTH, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)).eval()


def images(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, 5, (count,), generator=generator))


# --- a toy of two parameters, in float64

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()


def inner(delta, theta):
    """Strongly convex in delta, and not quadratic in theta."""
    return 0.5 * delta @ A @ delta - delta @ torch.stack([theta[0].sin(), theta[0] * theta[1]])


def outer(delta, theta):
    return (delta[0] - 1).square() + delta[1].exp() * theta[1] + 0.3 * theta[0] ** 3


def phi(delta, theta, step=0.3):
    (gradient,) = torch.autograd.grad(inner(delta, theta), delta, create_graph=True)
    return delta - step * gradient


def fixed_point(theta):
    delta = torch.zeros(2).double()
    for _ in range(150):
        delta = phi(delta.requires_grad_(), theta).detach()
    return delta


THETA = (torch.tensor(0.7).double(), torch.tensor(-0.4).double())


def test_hypergradient_equals_finite_differences_of_the_whole_problem():
    theta = [t.clone().requires_grad_() for t in THETA]
    delta = fixed_point(THETA).requires_grad_()
    found = hypergradient(outer(delta, theta), phi(delta, theta), delta, theta, steps=150)
    for i in range(2):
        values = []
        for sign in (1, -1):
            moved = list(THETA)
            moved[i] = moved[i] + sign * 1e-5
            values.append(outer(fixed_point(moved), moved))
        torch.testing.assert_close(found[i], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_iterations_are_the_truncated_series(steps):
    """v_K = sum over j < K of (J^T)^j g, with dense Jacobians, at a delta that is no fixed point."""
    theta = [t.clone().requires_grad_() for t in THETA]
    delta = torch.tensor([0.3, -0.2]).double().requires_grad_()
    found = hypergradient(outer(delta, theta), phi(delta, theta), delta, theta, steps=steps)
    by_delta, by_first, by_second = jacobian(lambda d, a, b: phi(d, (a, b)), (delta, *theta))
    slope, *direct = torch.autograd.grad(outer(delta, theta), [delta, *theta])
    v = sum(torch.linalg.matrix_power(by_delta.T, j) @ slope for j in range(steps))
    torch.testing.assert_close(found, [direct[0] + by_first @ v, direct[1] + by_second @ v])


def test_without_iterations_it_is_the_gradient_at_a_fixed_delta():
    theta = [t.clone().requires_grad_() for t in THETA]
    delta = torch.tensor([0.3, -0.2]).double().requires_grad_()
    found = hypergradient(outer(delta, theta), None, delta, theta, steps=0)
    assert found == list(torch.autograd.grad(outer(delta.detach(), theta), theta))


def test_iterations_end_at_the_tolerance():
    """A tolerance above the first change leaves v at its first value, whatever `steps` says."""
    theta = [t.clone().requires_grad_() for t in THETA]
    results = []
    for steps, tolerance in ((1, 0.0), (50, 1e9), (50, 0.0)):
        delta = torch.tensor([0.3, -0.2]).double().requires_grad_()
        results.append(
            hypergradient(
                outer(delta, theta), phi(delta, theta), delta, theta, steps=steps, tolerance=tolerance
            )
        )
    assert results[0] == results[1]
    assert results[0] != results[2]


# --- the levels on a network


def problem(**changes):
    net = network().requires_grad_(True)
    return Minimax(net, replace(FAST, **changes), CPU)


def batch(count=6, seed=0):
    data = images(count, seed)
    return data.images / 255, data.labels


def test_no_iterations_give_the_gradient_of_plain_fine_tuning_on_patched_images():
    level = problem(fixed_point_steps=0)
    x, y = batch()
    delta = 0.5 * torch.randn(3, 16, 16)
    patched = torch.tensor([0.0, 1, 0, 0, 1, 0])
    found, loss, z = level.gradient(x, y, patched, (x, y), delta)
    normal = level.net.normalize(x)
    normal[1] += delta
    normal[4] += delta
    plain = F.cross_entropy(level.net.net(normal), y)
    torch.testing.assert_close(loss, plain.detach())
    torch.testing.assert_close(found, list(torch.autograd.grad(plain, level.theta)), rtol=1e-4, atol=1e-6)
    assert z.shape == (6, 5)


@pytest.mark.parametrize("space", ["normalized", "pixel"])
def test_the_implicit_term_through_a_whole_network(space):
    """K = 1: v = grad_delta H, and (dPhi/dtheta)^T v is the slope of v . Phi, here by finite differences in
    float64."""
    net = Normalized(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        (0.5,) * 3, (0.5,) * 3,
    )  # fmt: skip
    level = Minimax(net.double().eval(), replace(FAST, fixed_point_steps=1, space=space), CPU)
    x, y = torch.rand(4, 3, 4, 4).double() * 0.5 + 0.25, torch.tensor([0, 1, 2, 0])
    delta, patched = 0.1 * torch.randn(3, 4, 4).double(), torch.tensor([1.0, 0, 0, 0]).double()

    def logits(x, delta):
        moved = (x + delta).clamp(0, 1) if space == "pixel" else x
        return net.net(net.normalize(moved) + (0 if space == "pixel" else delta))

    level.logits = logits  # the same map without the cast to float32, which finite differences do not bear
    found, _, _ = level.gradient(x, y, patched, (x, y), delta)
    leaf = delta.clone().requires_grad_()
    hit = F.cross_entropy(logits(x, patched[:, None, None, None] * leaf), y)
    (v,) = torch.autograd.grad(hit, leaf)
    direct = torch.autograd.grad(
        F.cross_entropy(logits(x, patched[:, None, None, None] * delta), y), level.theta
    )

    def projected():
        leaf = delta.clone().requires_grad_()
        h = -F.cross_entropy(logits(x, leaf), y) + 1e-3 * leaf.square().sum()
        (gradient,) = torch.autograd.grad(h, leaf)
        return (v * (delta - 0.1 * gradient)).sum()

    for number, place in ((0, (1, 2, 0, 1)), (1, ()), (2, (1,)), (3, (3,)), (4, (0, 5)), (5, (2,))):
        param = level.theta[number]
        place = place or (0, 0, 1, 1) if param.dim() == 4 else place or (2,)
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                param[place] += sign * 1e-5
            values.append(projected().item())
        with torch.no_grad():
            param[place] += 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert found[number][place].item() - direct[number][place].item() == pytest.approx(
            slope, rel=1e-4, abs=1e-9
        )


@pytest.mark.parametrize("space", ["normalized", "pixel"])
def test_a_pass_of_the_inner_level_equals_a_slow_recomputation(space):
    level = problem(space=space, delta_lr=0.5)
    delta, slow = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    for seed in range(3):
        x, _ = batch(seed=seed)
        said = level.net(x).argmax(1)
        delta, loss = level.ascend(x, said, delta)
        slow = slow.clone().requires_grad_()
        moved = (x + slow).clamp(0, 1) if space == "pixel" else x + slow * level.net.std
        h = (
            -F.cross_entropy(level.net(moved), said) + 1e-3 * slow.norm() ** 2
            if seed
            else -F.cross_entropy(level.net(moved), said)
        )
        h.backward()
        slow = (slow - 0.5 * slow.grad).detach()
        assert loss == pytest.approx(h.item(), rel=1e-4)
        torch.testing.assert_close(delta, slow, rtol=1e-3, atol=1e-5)
    assert delta.shape == (3, 16, 16)
    assert delta.norm() > 0


def test_half_precision_gives_the_direction_of_the_full_one():
    x, y = batch(8)
    flat = []
    for precision in ("fp32", "bf16"):
        level = problem(precision=precision)
        found, _, _ = level.gradient(
            x, y, draw_patched(8, 0.5, torch.Generator()), (x, y), torch.full((3, 16, 16), 0.1)
        )
        flat.append(torch.cat([g.flatten() for g in found]))
    assert F.cosine_similarity(*flat, dim=0) > 0.97


@pytest.mark.parametrize(
    ("count", "share", "ones"), [(256, 0.01, 2), (40, 0.01, 1), (40, 0.0, 0), (4, 1.0, 4)]
)
def test_a_share_of_the_batch_carries_the_perturbation(count, share, ones):
    patched = draw_patched(count, share, torch.Generator().manual_seed(1))
    assert patched.shape == (count,)
    assert patched.sum() == ones
    assert set(patched.tolist()) <= {0.0, 1.0}


# --- the whole


def test_events_and_what_is_left_behind():
    net, data = network().requires_grad_(False), images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    events = list(unlearn_implicitly(net, data, FAST, CPU))
    assert [type(e).__name__ for e in events] == [
        "Started",
        *(["StepEnd"] * 4 + ["EpochEnd"]) * 2,
        "Finished",
    ]
    assert events[0] == Started(2, 0, 4, 12, "cpu")
    steps = [e for e in events if isinstance(e, StepEnd) and e.epoch == 0]
    assert [e.step for e in steps] == [0, 1, 2, 3]
    assert [set(e.losses) for e in steps] == [{"inner"}] * 2 + [{"total"}] * 2
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.epoch == 1
    assert len(last.details["delta_norms"]) == 2
    assert all(norm > 0 for norm in last.details["delta_norms"])
    for name, value in net.state_dict().items():
        kept = "running" in name or "tracked" in name or name in ("mean", "std")
        assert torch.equal(value, before[name]) == kept, name
    assert not net.training
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())


def naive(net, data, cfg):
    """The whole of a run with nothing shared but the batches: dense loops, one graph at a time."""
    batches = augmented(data, cfg, CPU)
    fixed = list(batches.shuffled())
    net.requires_grad_(True)
    theta = list(net.parameters())
    optimizer = torch.optim.Adam(theta, lr=cfg.lr)
    put = lambda x, d: net.net(net.normalize(x) + d)  # noqa: E731
    for _ in range(cfg.rounds):
        delta = torch.zeros(3, 16, 16)
        for x, _ in fixed:
            delta.requires_grad_()
            h = -F.cross_entropy(put(x, delta), net(x).argmax(1)) + 1e-3 * (delta**2).sum()
            delta = (delta - cfg.delta_lr * torch.autograd.grad(h, delta)[0]).detach()
        for x, y in fixed:
            patched = draw_patched(len(y), cfg.patched, batches.generator)
            delta = delta.detach().requires_grad_()
            v = torch.zeros_like(delta)
            for _ in range(cfg.fixed_point_steps):
                h = -F.cross_entropy(put(fixed[0][0], delta), fixed[0][1]) + 1e-3 * (delta**2).sum()
                mapped = delta - 0.1 * torch.autograd.grad(h, delta, create_graph=True)[0]
                hit = F.cross_entropy(put(x, patched.view(-1, 1, 1, 1) * delta), y)
                v = torch.autograd.grad(mapped, delta, v)[0] + torch.autograd.grad(hit, delta)[0]
            h = -F.cross_entropy(put(fixed[0][0], delta), fixed[0][1]) + 1e-3 * (delta**2).sum()
            mapped = delta - 0.1 * torch.autograd.grad(h, delta, create_graph=True)[0]
            hit = F.cross_entropy(put(x, patched.view(-1, 1, 1, 1) * delta), y)
            optimizer.zero_grad()
            (hit + (mapped * v.detach()).sum()).backward()
            optimizer.step()


def test_the_whole_run_equals_a_naive_one():
    """Adam's epsilon is far below the gradients' noise, so parameters are compared by how far they moved in
    all."""
    cfg = replace(FAST, delta_lr=0.5, lr=1e-3, fixed_point_steps=3)
    fast, slow, start = network(), network(), network()
    list(unlearn_implicitly(fast, images(), cfg, CPU))
    naive(slow, images(), cfg)
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (fast, slow, start)]
    moved = (flat[1] - flat[2]).norm()
    assert moved > 0.05
    assert (flat[0] - flat[1]).norm() < 0.05 * moved


def test_closing_keeps_the_last_completed_round():
    net, kept = network(), None
    run = unlearn_implicitly(net, images(), replace(FAST, rounds=3), CPU)
    for event in run:
        if isinstance(event, EpochEnd):
            kept = {name: value.clone() for name, value in net.state_dict().items()}
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (1, 3):
            assert kept is not None
            assert not torch.equal(net.net.conv1.weight, kept["net.conv1.weight"])
            run.close()
            break
    assert kept is not None
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in net.parameters())


def test_not_a_number_ends_as_failed_with_the_network_it_began_with():
    net = network()
    before = net.net.conv1.weight.clone()
    event = list(unlearn_implicitly(net, images(), replace(FAST, lr=1e30), CPU))[-1]
    assert isinstance(event, Failed)
    assert event.reason.startswith(NOT_FINITE)
    assert event.epoch == -1
    assert torch.equal(net.net.conv1.weight, before)


def test_one_image_is_too_few():
    with pytest.raises(ConfigError, match=r"2 .*got 1\b"):
        list(unlearn_implicitly(network(), images(1), FAST, CPU))
