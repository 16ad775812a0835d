"""AVG rows: means over the attacks that every defense has, DER by Eq. 6 of them, and what the paper prints
likewise."""

from __future__ import annotations

import pytest

from npd_core.experiments.average import averages
from npd_core.experiments.published import ATTACKS, DEFENSES, paper, published
from npd_core.experiments.record import Cell, Scores, Seconds
from npd_core.metrics import Metrics, mean


def cell(attack: str, defense: str, acc: float = 0.9, asr: float = 0.1, **more) -> Cell:
    values = {
        "before": Scores(0.95, 0.5, 0.4),
        "after": Scores(acc, asr, 0.8),
        "der": 0.7,
        "seconds": Seconds(2.0, 1.0),
    }
    return Cell(
        row={"attack": attack, "defense": defense}, model="m", defense=defense, seed=3, **(values | more)
    )


def test_the_mean_of_metrics():
    assert mean([Metrics(0.9, 0.5, 0.2), Metrics(0.8, 0.1, 0.4)]) == pytest.approx((0.85, 0.3, 0.3))


def test_der_is_eq_6_of_the_means_and_not_the_mean_of_eq_6():
    rise = cell(
        "wanet", "fp", acc=0.97, asr=0.9, before=Scores(0.95, 0.6, 0.4), der=0.5, seconds=Seconds(4.0, 2.0)
    )
    (found,), attacks = averages([cell("lf", "fp", acc=0.9, asr=0.1), rise], "signs")
    assert attacks == ["lf", "wanet"]
    assert found.before == pytest.approx((0.95, 0.55, 0.4))
    assert found.after == pytest.approx((0.935, 0.5, 0.8))
    assert found.der == pytest.approx((0.05 - 0.015 + 1) / 2)
    assert found.der != pytest.approx((0.7 + 0.5) / 2)
    assert (dict(found.row), found.defense, found.seconds, found.seed) == (
        {"attack": "AVG", "defense": "fp"}, "fp", Seconds(3.0, 1.5), 3,
    )  # fmt: skip
    assert found.published is None


def test_only_attacks_for_which_every_defense_has_numbers():
    cells = [cell("lf", "fp", asr=0.4), cell("lf", "npd", asr=0.2), cell("wanet", "fp", asr=0.0)]
    missing = cell("wanet", "npd", after=None, failed="It diverged.")
    found, attacks = averages([*cells, missing], "signs")
    assert attacks == ["lf"]
    assert [(c.defense, c.after.asr) for c in found] == [("fp", 0.4), ("npd", 0.2)]
    assert averages([missing], "signs") == averages([], "signs") == ([], [])


@pytest.mark.parametrize(("table", "dataset"), [("table1", "cifar10"), ("table2", "tiny_imagenet")])
def test_the_published_averages_are_those_that_the_paper_prints(table, dataset):
    printed = paper()[table][dataset]["AVG"]
    names = [name for name, theirs in DEFENSES.items() if (printed.get(theirs) or {}).get("DER") is not None]
    assert names == ["fp", "nad", "nc", "anp"]  # the rest of the row is lost in our copy
    cells = [
        cell(attack, name, published=published(table, dataset, attack, name, {}))
        for attack in ATTACKS
        for name in names
    ]
    found, _ = averages(cells, dataset)
    for average in found:
        row = printed[DEFENSES[average.defense]]
        for ours, name in zip(average.published, ("ACC", "ASR", "DER"), strict=False):
            assert 100 * ours == pytest.approx(row[name], abs=0.011)


def test_the_paper_has_no_average_where_it_lacks_a_cell():
    row = published("table1", "cifar10", "lf", "fp", {})
    (found,), _ = averages([cell("lf", "fp", published=row), cell("wanet", "fp")], "cifar10")
    assert found.published is None
