"""Each loss term against its formula in float64."""

import math

import pytest
import torch

from npd_core.polarizer import objective

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [4.0, 4.5, 1.0], [-2.0, 0.0, 1.5]])
Y = torch.tensor([0, 2, 1, 1])
TARGET = torch.tensor([1, 0, 0, 2])


def probabilities(row):
    total = sum(math.exp(v) for v in row.tolist())
    return [math.exp(v) / total for v in row.tolist()]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_loss_bn_and_bce1_are_cross_entropy():
    expected = mean(-math.log(probabilities(z)[y]) for z, y in zip(LOGITS, Y.tolist(), strict=True))
    assert objective.loss_bn(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)
    assert objective.loss_bce1(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)


def test_loss_asr_is_eq_2():
    expected = mean(-math.log(1 - probabilities(z)[t]) for z, t in zip(LOGITS, TARGET.tolist(), strict=True))
    assert objective.loss_asr(LOGITS, TARGET).item() == pytest.approx(expected, abs=1e-6)


def test_loss_bce2_is_the_second_term_of_eq_3():
    def strongest_wrong(z, y):
        return max(p for k, p in enumerate(probabilities(z)) if k != y)

    expected = mean(-math.log(1 - strongest_wrong(z, y)) for z, y in zip(LOGITS, Y.tolist(), strict=True))
    assert objective.loss_bce2(LOGITS, Y).item() == pytest.approx(expected, abs=1e-6)


def test_bce2_and_asr_coincide_when_the_perturbation_reached_its_target():
    z = torch.tensor([[0.0, 5.0, 1.0]])
    assert objective.loss_bce2(z, torch.tensor([0])) == objective.loss_asr(z, torch.tensor([1]))


def test_mart_logs_follow_their_formula_and_are_capped():
    expected = mean(
        -math.log(1.0001 - probabilities(z)[t] + 1e-12) for z, t in zip(LOGITS, TARGET.tolist(), strict=True)
    )
    assert objective.loss_asr(LOGITS, TARGET, "mart").item() == pytest.approx(expected, abs=1e-6)
    assert objective.loss_asr(torch.tensor([[100.0, 0.0]]), torch.tensor([0]), "mart").item() < 9.3


def test_exact_logs_stay_finite_and_their_gradient_never_vanishes():
    z = torch.tensor([[100.0, -100.0, -100.0]], requires_grad=True)
    loss = objective.loss_asr(z, torch.tensor([0]))
    assert loss.item() == pytest.approx(200 - math.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0].item() == pytest.approx(1.0)


def test_total_is_the_weighted_sum_and_a_zero_weight_removes_its_term_exactly():
    z = LOGITS.clone().requires_grad_()
    terms = {"bn": objective.loss_bn(z, Y), "asr": objective.loss_asr(z, TARGET)}
    assert objective.total(terms, {"bn": 1.0, "asr": 0.4}).item() == pytest.approx(
        terms["bn"].item() + 0.4 * terms["asr"].item()
    )
    (alone,) = torch.autograd.grad(terms["bn"], z, retain_graph=True)
    (without,) = torch.autograd.grad(objective.total(terms, {"bn": 1.0, "asr": 0.0}), z, retain_graph=True)
    assert torch.equal(alone, without)
    (nothing,) = torch.autograd.grad(objective.total(terms, {"bn": 0.0, "asr": 0.0}), z)
    assert not nothing.any()


KEPT = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("form", ["exact", "mart"])
def test_images_left_out_have_no_part_in_a_mean_and_get_no_gradient(form):
    def terms(z, y, target, kept=None):
        return torch.stack([
            objective.loss_asr(z, target, form, kept),
            objective.loss_bce1(z, y, kept),
            objective.loss_bce2(z, y, form, kept),
        ])  # fmt: skip

    z = LOGITS.clone().requires_grad_()
    found = terms(z, Y, TARGET, KEPT)
    torch.testing.assert_close(found, terms(LOGITS[KEPT], Y[KEPT], TARGET[KEPT]))
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert not gradient[~KEPT].any()
    assert gradient[KEPT].any(dim=1).all()
    torch.testing.assert_close(terms(z, Y, TARGET, torch.ones(4, dtype=torch.bool)), terms(z, Y, TARGET))


def test_a_batch_in_which_nothing_is_kept_costs_nothing():
    z = LOGITS.clone().requires_grad_()
    nothing = torch.zeros(4, dtype=torch.bool)
    loss = objective.loss_asr(z, TARGET, kept=nothing) + objective.loss_bce1(z, Y, nothing)
    (gradient,) = torch.autograd.grad(loss + objective.loss_bce2(z, Y, kept=nothing), z)
    assert loss == 0
    assert not gradient.any()
