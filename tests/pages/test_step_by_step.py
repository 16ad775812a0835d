"""Step by step: every part is drawn, its numbers are those of the model, its place is in the URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from npd_core.runs.store import Run

Open = Callable[..., AppTest]
UPDATE = r"\theta \leftarrow \theta"
TITLES = ["Eq. 1", "Eq. 5", "Eq. 4", "Eq. 4", "Eq. 5", "Eq. 2", "Eq. 3", "Eq. 5", UPDATE]


def shown(page: AppTest, errors: Sequence[str] = ()) -> str:
    """The text and formulas of the part on show."""
    assert not page.exception, page.exception
    assert [element.value for element in page.error] == list(errors)
    return " ".join(
        [page.subheader[0].value, *(e.value for e in page.latex), *(e.value for e in page.markdown)]
    )


def numbers(page: AppTest) -> list[str]:
    """Every number in the text of a part, as it is printed."""
    return re.findall(r"\d+\.\d\d", " ".join(element.value for element in page.markdown))


def test_every_part_has_its_equation_and_the_buttons_walk_through(tiny_zoo: str, open_page: Open) -> None:
    page = open_page("step_by_step").run()
    assert page.button(key="back").disabled
    for number, title in enumerate(TITLES, start=1):
        assert page.subheader[0].value.startswith(f"{number} · ")
        assert title in shown(page)
        assert page.query_params.get("step", "1") in (str(number), [str(number)])
        if number < len(TITLES):
            page.button(key="next").click().run()
    assert page.button(key="next").disabled
    page.button(key="back").click().run()
    assert page.subheader[0].value.startswith("8 · ")


def test_the_numbers_are_those_of_the_model(tiny_zoo: str, open_page: Open) -> None:
    import torch

    from npd_core.data.clean import load_clean
    from npd_core.zoo import Zoo

    clean = load_clean("signs", 360, 0)
    net = Zoo().load(tiny_zoo).net
    with torch.no_grad():
        z = net(clean.images[7:8] / 255)[0].double()
    order = [int(k) for k in z.argsort(descending=True) if int(k) != int(clean.labels[7])]
    page = open_page("step_by_step", image="7", step="2").run()
    assert shown(page)
    assert {f"{float(z[k]):.2f}" for k in (int(clean.labels[7]), order[0])} <= set(numbers(page))
    page.pills(key="step").set_value(8).run()
    assert not page.exception
    table = page.table[0].value
    loss = float(-z.log_softmax(0)[int(clean.labels[7])])
    values, products = table.iloc[:, 1], table.iloc[:, 3]
    assert float(values.iloc[0]) == pytest.approx(loss, rel=0.02), "the start is the identity up to rounding"
    total = sum(float(value) for value in products.iloc[:4])
    assert float(products.iloc[4].strip("*")) == pytest.approx(total, rel=2e-3)


def test_without_weights_there_is_no_inner_level_and_the_walk_is_shorter(
    tiny_zoo: str, open_page: Open
) -> None:
    page = open_page("step_by_step", lambda2="0", lambda3="0", step="3").run()
    assert r"\lambda_2 = \lambda_3 = \lambda_4 = 0" in shown(page)
    assert page.pills(key="step").options == ["1", "2", "3", "4", "5", "6"]
    page = open_page("step_by_step", step="9").run()
    assert UPDATE in shown(page)
    page.slider(key="lambda2").set_value(0.0)
    page.slider(key="lambda3").set_value(0.0).run()
    assert shown(page).startswith("6 · ")
    assert UPDATE in shown(page)


def test_with_a_trained_polarizer_the_attacked_network_matters(
    make_run: Callable[..., Run], open_page: Open
) -> None:
    run = make_run(layer="layer4.1.conv1")
    page = open_page("step_by_step", run=run.id, theta="trained").run()
    assert "`layer4.1.conv1`" in shown(page), "the layer is that of the run"
    page.pills(key="step").set_value(2).run()
    assert "f_w(x)_k" in shown(page)
    base = numbers(page)
    page.segmented_control(key="attack_on").set_value("polarized").run()
    assert r"\hat f_\theta(x)_k" in shown(page)
    assert numbers(page) != base
    page.segmented_control(key="theta").set_value("identity").run()
    assert shown(page)
    assert [float(number) for number in numbers(page)] == pytest.approx(
        [float(number) for number in base], abs=0.02
    ), "at the identity f̂ is f_w"


@pytest.mark.parametrize(
    "query", [{"image": "999999"}, {"image": "x"}, {"step": "99"}, {"step": "x"}, {"theta": "?"}]
)
def test_garbage_in_the_url_falls_back(query: dict[str, str], tiny_zoo: str, open_page: Open) -> None:
    page = open_page("step_by_step", **query).run()
    sentences = [element.value for element in page.error]
    for name, value in query.items():
        assert all(name in sentence and value in sentence for sentence in sentences)
    assert len(sentences) == (0 if "theta" in query else 1)
    assert shown(page, sentences).startswith("1 · ")


def test_refused_settings_are_one_sentence(tiny_zoo: str, open_page: Open) -> None:
    page = open_page("step_by_step", layer="layer9").run()
    assert not page.exception
    (sentence,) = [element.value for element in page.error]
    assert "'layer9'" in sentence


def test_without_models_the_page_says_how_to_get_one(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "empty"))
    page = open_page("step_by_step").run()
    assert not page.exception
    assert "npd zoo train" in page.info[0].value
