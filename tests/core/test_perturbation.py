"""The inner level against closed forms and a slow float64 recomputation."""

import pytest
import torch
import torch.nn.functional as F

from npd_core.errors import UnknownNameError
from npd_core.polarizer.perturbation import BALLS, L1Ball, L2Ball, LinfBall, Shared, direction, pgd, runner_up


def linear(w):
    """logits(x) = (-w.x, w.x): the best perturbation toward class 1 is rho w / |w|."""
    return lambda x: torch.stack([-(x.flatten(1) @ w), x.flatten(1) @ w], dim=1)


GREY = torch.full((2, 3, 4, 4), 0.5)
ONE = torch.tensor([1, 1])


def test_pgd_reaches_the_optimum_of_a_linear_model_in_l2():
    w = torch.randn(48)
    found = pgd(linear(w), GREY, ONE, ball=L2Ball(0.3), steps=5, step_size=0.3, step="l2")
    torch.testing.assert_close(found.delta.flatten(1), (0.3 * w / w.norm()).expand(2, -1))


def test_pgd_reaches_the_optimum_of_a_linear_model_in_linf():
    w = torch.randn(48)
    found = pgd(linear(w), GREY, ONE, ball=LinfBall(0.1), steps=3, step_size=0.1, step="sign")
    torch.testing.assert_close(found.delta.flatten(1), (0.1 * w.sign()).expand(2, -1))


def test_a_sign_step_longer_than_the_ball_ends_on_the_sphere_with_equal_changes():
    """What the defaults do at 32x32: 0.1 sqrt(3072) = 5.5 > 3, so every color value moves by 3 /
    sqrt(3072)."""
    x = torch.full((2, 3, 32, 32), 0.5)
    w = torch.randn(3072)
    found = pgd(linear(w), x, ONE, ball=L2Ball(3.0), steps=1, step_size=0.1)
    torch.testing.assert_close(found.delta.flatten(1), (3 / 3072**0.5 * w.sign()).expand(2, -1))


@pytest.mark.parametrize("norm", BALLS)
def test_projection_stays_inside_and_leaves_the_inside_alone(norm):
    ball = BALLS[norm](2.0)
    size = {"l2": lambda d: d.flatten(1).norm(dim=1), "l1": lambda d: d.abs().flatten(1).sum(1),
            "linf": lambda d: d.abs().flatten(1).amax(1)}[norm]  # fmt: skip
    far = torch.randn(5, 3, 4, 4) * 10
    assert size(ball.project(far)).max() <= 2.0 + 1e-5
    near = far / size(far)[:, None, None, None]
    torch.testing.assert_close(ball.project(near), near)


def test_l1_projection_scales_each_image_on_its_own():
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, 0, 0, 0], delta[0, 1, 0, 0], delta[1, 0, 0, 0] = 3.0, 1.0, 0.5
    projected = L1Ball(2.0).project(delta)
    assert projected[0, 0, 0, 0] == 1.5
    assert projected[0, 1, 0, 0] == 0.5
    assert projected[1, 0, 0, 0] == 0.5


def test_runner_up_is_the_best_wrong_class_even_when_all_others_are_very_unlikely():
    logits = torch.tensor([[3.0, 2.0, 1.0], [-50.0, 9.0, -40.0], [5.0, -1e4, -2e4]])
    assert runner_up(logits, torch.tensor([0, 1, 0])).tolist() == [1, 2, 1]


def slow_pgd(net, x, target, rho, steps, step_size):
    """One image at a time, in float64, by the text of the paper: step, project, clip before the forward
    pass."""
    result = []
    for image, label in zip(x.double(), target, strict=True):
        delta = torch.zeros_like(image)
        for _ in range(steps):
            delta = delta.clone().requires_grad_()
            loss = F.cross_entropy(net((image + delta).clamp(0, 1)[None]), label[None])
            (gradient,) = torch.autograd.grad(loss, delta)
            delta = (delta - step_size * gradient.sign()).detach()
            if delta.norm() > rho:
                delta = delta * rho / delta.norm()
        result.append(delta)
    return torch.stack(result)


def small_net():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(216, 4)
    ).double()


def test_pgd_equals_a_slow_recomputation():
    net = small_net()
    x, target = torch.rand(5, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3, 0])
    found = pgd(net, x, target, ball=L2Ball(0.7), steps=3, step_size=0.1)
    torch.testing.assert_close(found.delta, slow_pgd(net, x, target, 0.7, 3, 0.1))
    torch.testing.assert_close(found.x, (x + found.delta).clamp(0, 1))
    torch.testing.assert_close(found.logits, net(found.x).float())
    before, after = F.cross_entropy(net(x), target), F.cross_entropy(net(found.x), target)
    assert after < before


def test_perturbed_images_stay_pictures_within_the_budget():
    x = torch.rand(8, 3, 8, 8)
    w = torch.randn(192)
    found = pgd(linear(w), x, torch.ones(8, dtype=torch.long), ball=L2Ball(1.5), steps=4, step_size=0.5)
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert found.delta.flatten(1).norm(dim=1).max() <= 1.5 + 1e-5
    assert not found.delta.requires_grad
    assert not found.x.requires_grad


@pytest.mark.parametrize(("early_stop", "passes"), [(None, 6), (0.6, 2)])
def test_early_stop_ends_once_enough_images_reach_their_target(early_stop, passes):
    """On a linear model one step is enough: one pass for the gradient, one that finds out."""
    w, calls = torch.ones(48), []

    def counted(x):
        calls.append(1)
        return linear(w)(x - 0.5)

    pgd(counted, GREY, ONE, ball=L2Ball(1.0), steps=5, step_size=0.3, step="l2", early_stop=early_stop)
    assert len(calls) == passes


def test_raw_step_is_the_gradient_of_the_batch_mean():
    gradient = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(direction(gradient, "raw"), gradient / 4)
    with pytest.raises(UnknownNameError, match="sign, l2, raw"):
        direction(gradient, "newton")


# --- the variants: universal, untargeted, and with images left out


def all_share(count, like, start=None):
    """One perturbation, 0 unless given, for all of `count` images."""
    start = torch.zeros_like(like[:1]) if start is None else start
    return Shared(start, torch.ones(count, 1).to(like))


def slow_universal(net, x, label, groups, start, rho, steps, step_size, how, sign):
    """One image at a time in float64: the gradient of the mean loss over each group moves the group's
    perturbation."""
    result = []
    for members, delta in zip(groups, start, strict=True):
        for _ in range(steps):
            gradient = torch.zeros_like(delta)
            for i in members:
                d = delta.clone().requires_grad_()
                loss = sign * F.cross_entropy(net((x[i] + d).clamp(0, 1)[None]), label[i : i + 1])
                gradient += torch.autograd.grad(loss, d)[0] / len(members)
            if not members:
                break
            way = {"sign": gradient.sign(), "l2": gradient / gradient.norm(), "raw": gradient}[how]
            delta = delta - step_size * way
            if delta.norm() > rho:
                delta = delta * rho / delta.norm()
        result.append(delta)
    return torch.stack(result)


@pytest.mark.parametrize("how", ["sign", "l2", "raw"])
@pytest.mark.parametrize("away", [False, True])
def test_universal_perturbations_equal_a_slow_recomputation(how, away):
    """Three of them, warm-started: two images share the first, three the second, none the third; one is left
    out."""
    net, groups = small_net(), [[0, 3], [1, 2, 5], []]
    x, label = torch.rand(6, 3, 8, 8).double(), torch.tensor([0, 1, 1, 0, 2, 1])
    member = torch.zeros(6, 3).double()
    for number, members in enumerate(groups):
        member[members, number] = 1
    start = torch.randn(3, 3, 8, 8).double() * 0.02
    kept = member.sum(1) > 0
    found = pgd(
        net, x, label, ball=L2Ball(0.7), steps=3, step_size=0.1, step=how, away=away, kept=kept,
        shared=Shared(start, member),
    )  # fmt: skip
    expected = slow_universal(net, x, label, groups, start, 0.7, 3, 0.1, how, -1 if away else 1)
    torch.testing.assert_close(found.delta, expected)
    assert torch.equal(found.delta[2], start[2])
    torch.testing.assert_close(found.x[3], (x[3] + found.delta[0]).clamp(0, 1))
    assert torch.equal(found.x[4], x[4])
    torch.testing.assert_close(found.logits, net(found.x).float())
    assert not found.delta.requires_grad


def test_a_universal_perturbation_is_the_same_for_all_and_keeps_the_budget_of_one_image():
    x, w = torch.rand(7, 3, 4, 4) * 0.2 + 0.4, torch.randn(48)
    found = pgd(
        linear(w), x, torch.ones(7, dtype=torch.long), ball=L2Ball(0.3), steps=4, step_size=0.3, step="l2",
        shared=all_share(7, x),
    )  # fmt: skip
    assert found.delta.shape == (1, 3, 4, 4)
    torch.testing.assert_close(found.delta.flatten(), 0.3 * w / w.norm())
    torch.testing.assert_close(found.x - x, found.delta.expand_as(x))


def test_a_universal_perturbation_goes_on_from_where_it_was():
    x, w = torch.full((3, 3, 4, 4), 0.5), torch.ones(48)
    arguments = {"ball": L2Ball(10.0), "steps": 1, "step_size": 0.01}
    label = torch.ones(3, dtype=torch.long)
    once = pgd(linear(w), x, label, **arguments, shared=all_share(3, x))
    twice = pgd(linear(w), x, label, **arguments, shared=all_share(3, x, once.delta))
    torch.testing.assert_close(twice.delta, torch.full((1, 3, 4, 4), 0.02))
    torch.testing.assert_close(once.delta, torch.full((1, 3, 4, 4), 0.01))


def test_an_untargeted_perturbation_of_a_linear_model_is_the_best_one_against_the_label():
    w = torch.randn(48)
    found = pgd(
        linear(w), GREY, torch.tensor([1, 0]), ball=L2Ball(0.3), steps=4, step_size=0.3, step="l2", away=True
    )
    best = 0.3 * w / w.norm()
    torch.testing.assert_close(found.delta.flatten(1), torch.stack([-best, best]))


def test_an_untargeted_perturbation_equals_a_slow_recomputation():
    net = small_net()
    x, y = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    found = pgd(net, x, y, ball=L2Ball(0.7), steps=3, step_size=0.1, away=True)
    groups = [[i] for i in range(4)]
    expected = slow_universal(net, x, y, groups, torch.zeros_like(x), 0.7, 3, 0.1, "sign", -1)
    torch.testing.assert_close(found.delta, expected)
    assert F.cross_entropy(net(found.x), y) > F.cross_entropy(net(x), y)


def test_images_left_out_stay_as_they_are_and_change_nothing_for_the_others():
    net = small_net()
    x, target = torch.rand(5, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3, 0])
    kept = torch.tensor([True, False, True, True, False])
    arguments = {"ball": L2Ball(0.7), "steps": 2, "step_size": 0.1}
    found = pgd(net, x, target, **arguments, kept=kept)
    alone = pgd(net, x[kept], target[kept], **arguments)
    torch.testing.assert_close(found.delta[kept], alone.delta)
    assert not found.delta[~kept].any()


@pytest.mark.parametrize(
    ("kept", "away", "passes"),
    [
        ([True, True, True], False, 6),  # one of three reaches class 1: too few
        ([True, False, False], False, 2),  # the one that counts does
        ([False, True, True], False, 6),
        ([True, True, True], True, 2),  # two of three are called otherwise than 1: more than 0.6
        ([True, False, False], True, 6),
        ([False, False, False], False, 6),
    ],
)
def test_early_stop_counts_the_kept_images_and_what_counts_as_a_hit(kept, away, passes):
    calls = []

    def stubborn(x):
        """Whatever is done to them: the first image is called 1, the others 0."""
        calls.append(1)
        return torch.tensor([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]]) + 0 * x.sum()

    x, label = torch.full((3, 3, 4, 4), 0.5), torch.ones(3, dtype=torch.long)
    kept = torch.tensor(kept)
    pgd(stubborn, x, label, ball=L2Ball(1.0), steps=5, step_size=0.1, early_stop=0.6, away=away, kept=kept)
    assert len(calls) == passes
