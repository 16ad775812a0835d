"""Metrics on hand-made predictions."""

import pytest
import torch

from npd_core import evaluation
from npd_core.attacks import get_attack
from npd_core.attacks.poison import PoisonedTest
from npd_core.data.load import ImageSet
from npd_core.evaluation import evaluate, predict_proba
from npd_core.metrics import Metrics, der


class Reader(torch.nn.Module):
    """Says the class that is written into the first pixel of an image."""

    def __init__(self, classes):
        super().__init__()
        self.classes = torch.nn.Parameter(torch.arange(classes).float())

    def forward(self, x):
        return -((x[:, :1, 0, 0] * 255 - self.classes) ** 2)


def written(classes):
    images = torch.zeros(len(classes), 3, 8, 8, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.tensor(classes, dtype=torch.uint8)[:, None]
    return images


def test_the_three_metrics_on_hand_made_predictions():
    clean = ImageSet(written([0, 1, 2, 1]), torch.tensor([0, 1, 2, 0]))
    poisoned = PoisonedTest(
        written([0, 0, 1, 2, 2]), torch.tensor([1, 2, 1, 2, 1]), torch.zeros(5).long(), torch.arange(5)
    )
    measured = evaluate(Reader(3), evaluation.TestSets(clean, poisoned))
    assert measured == Metrics(acc=3 / 4, asr=2 / 5, ra=2 / 5)


def test_no_poisoned_images_is_no_division_by_zero():
    nothing = torch.zeros(0, dtype=torch.long)
    poisoned = PoisonedTest(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), nothing, nothing, nothing)
    assert evaluate(
        Reader(3), evaluation.TestSets(ImageSet(written([1]), torch.tensor([1])), poisoned)
    ) == Metrics(1.0, 0.0, 0.0)


def test_measuring_leaves_the_mode_of_the_network_alone():
    net = Reader(3).train()
    evaluate(net, evaluation.test_sets("signs", get_attack("blended", "signs"), limit=8))
    assert net.training


def test_probabilities_of_bytes_and_of_fractions_agree():
    images = written([0, 2])
    p = predict_proba(Reader(3), images)
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    torch.testing.assert_close(p, predict_proba(Reader(3), images / 255))
    assert p.argmax(1).tolist() == [0, 2]


def test_test_sets_of_signs():
    sets = evaluation.test_sets("signs", get_attack("badnets_a2o", "signs"))
    assert len(sets.clean.labels) >= 1200
    assert len(sets.poisoned.labels) == int((sets.clean.labels != 0).sum())
    few = evaluation.test_sets("signs", get_attack("badnets_a2o", "signs"), limit=24)
    assert len(few.clean.labels) == 24
    assert len(few.clean.labels.unique()) > 6


def test_der_of_doing_nothing_is_a_half():
    assert der(Metrics(0.9, 0.95), Metrics(0.9, 0.95)) == 0.5


@pytest.mark.parametrize(("after", "expected"), [((0.9, 0.0), 0.975), ((1.0, 1.0), 0.5), ((0.4, 0.95), 0.25)])
def test_der_counts_a_gain_as_nothing(after, expected):
    assert der(Metrics(0.9, 0.95), Metrics(*after)) == pytest.approx(expected)
