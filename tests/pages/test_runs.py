"""The page of all runs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from npd_core.config.request import DefenseRequest
from npd_core.exports.run_archive import run_archive
from npd_core.runs.store import Run, RunStore
from pages.shared import downloads
from tests.core.test_runs_damaged import mutate

Open = Callable[..., AppTest]
Make = Callable[..., Run]


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


def button(page: AppTest, name: str) -> Button:
    """One of the buttons of the run that is shown."""
    return page.button(key=f"{name}-{page.selectbox(key='inspect').value}")


def test_history_lists_every_run_with_its_numbers(open_page: Open, make_run: Make) -> None:
    first, second = make_run(seed=1), make_run(seed=2, polarizer=False)
    page = open_page("runs").run()
    assert errors(page) == []
    table = page.dataframe[0].value
    assert set(table["id"]) == {first.id, second.id}
    row = table[table["id"] == first.id].iloc[0]
    assert (row["state"], row["kind"]) == ("finished", "live")
    assert (row["asr_before"], row["asr"], row["ra"]) == (0.97, 0.03, 0.74)
    assert row["layer"] == "layer4.1.conv1"
    assert row["seconds"] == 2.0


def test_the_run_of_the_url_is_shown_and_can_be_downloaded(open_page: Open, make_run: Make) -> None:
    run, _ = make_run(seed=1), make_run(seed=2)
    page = open_page("runs", run=run.id).run()
    assert errors(page) == []
    assert page.selectbox(key="inspect").value == run.id
    assert page.get("download_button")
    with zipfile.ZipFile(io.BytesIO(run_archive(run.folder, run.request.model))) as packed:
        assert set(packed.namelist()) == {
            "polarizer.safetensors",
            "polarizer.json",
            "request.json",
            "result.json",
            "events.jsonl",
            "use.py",
            "README.txt",
        }
        assert DefenseRequest.from_dict(json.loads(packed.read("request.json"))) == run.request
        assert run.request.model in packed.read("README.txt").decode()


def test_a_baseline_is_named_and_has_no_layer(open_page: Open, make_run: Make, make_baseline: Make) -> None:
    polarized, repaired = make_run(), make_baseline("fp")
    page = open_page("runs", run=repaired.id).run()
    assert errors(page) == []
    rows = page.dataframe[0].value.set_index("id")
    assert list(rows.loc[repaired.id][["defense", "layer", "lambda2", "rho"]].isna()) == [
        False,
        True,
        True,
        True,
    ]
    assert list(rows["defense"][[repaired.id, polarized.id]]) == ["FP", "NPD"]
    titles = page.selectbox(key="inspect").options
    assert any(" · live · FP · ASR 3.0% · " in title for title in titles)
    assert any(" · live · NPD · layer4.1.conv1 · ASR 3.0% · " in title for title in titles)
    texts = [element.value for element in page.markdown]
    assert any(downloads.WHOLE in text for text in texts)
    assert not any(downloads.FOLDED in text for text in texts)
    page.multiselect(key="compare").set_value([polarized.id, repaired.id]).run()
    assert errors(page) == []
    names = json.loads(page.get("plotly_chart")[-1].proto.spec)["data"][0]["x"]
    assert names == [f"{polarized.id[:6]} · NPD · layer4.1.conv1", f"{repaired.id[:6]} · FP"]


def test_the_lab_opens_a_run_with_its_settings(open_page: Open, make_run: Make) -> None:
    run = make_run(seed=5, lambda2=0.85)
    page = open_page("runs", run=run.id)
    page.session_state["lambda2"] = 0.2  # of a visit to the Lab
    page.run()
    button(page, "open").click().run()
    assert errors(page) == []
    assert page.session_state["lambda2"] == 0.85
    assert page.session_state["seed"] == 5


def test_a_finished_run_is_offered_in_every_format_with_a_link(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("runs", run=run.id).run()
    assert errors(page) == []
    labels = {element.proto.label for element in page.get("download_button")}
    assert {
        "Download",
        "Weights (.safetensors)",
        "PyTorch graph (.pt2)",
        "ONNX (.onnx)",
        "Report (.html)",
    } <= labels
    assert any(
        element.value.endswith(f"/lab?model={run.request.model}&run={run.id}") for element in page.code
    )


def test_comparison_draws_curves_and_names_the_settings_that_differ(open_page: Open, make_run: Make) -> None:
    one, two = make_run(lambda2=0.4), make_run(lambda2=0.1, layer="layer3.0.conv1")
    page = open_page("runs").run()
    page.multiselect(key="compare").set_value([one.id, two.id]).run()
    assert errors(page) == []
    curves = json.loads(page.get("plotly_chart")[0].proto.spec)
    assert len(curves["data"]) == 6
    assert len({trace["name"] for trace in curves["data"]}) == 2
    settings, numbers = (table.value for table in page.dataframe[-2:])
    assert set(settings["setting"]) == {"layer", "config.lambda2"}
    assert list(numbers["epoch"]) == [0, 1, 2] * 2


def test_a_link_carries_the_comparison(open_page: Open, make_run: Make) -> None:
    one, two = make_run(seed=1), make_run(seed=2)
    page = open_page("runs", compare=f"{one.id},{two.id},gone").run()
    assert page.multiselect(key="compare").value == [one.id, two.id]
    assert ['"gone"' in error for error in errors(page)] == [True]
    assert page.query_params["compare"] == f"{one.id},{two.id}"
    page.multiselect(key="compare").set_value([]).run()
    assert errors(page) == []
    assert "compare" not in page.query_params


def test_choosing_a_run_puts_it_into_the_url(open_page: Open, make_run: Make) -> None:
    one, two = make_run(seed=1), make_run(seed=2)
    page = open_page("runs", run=two.id).run()
    page.selectbox(key="inspect").set_value(one.id).run()
    assert errors(page) == []
    assert page.selectbox(key="run").value == one.id
    assert page.selectbox(key="inspect").value == one.id


def test_runs_without_curves_are_compared_by_their_results(open_page: Open, make_run: Make) -> None:
    one, two = make_run(seed=1, curves=False), make_run(seed=2)
    page = open_page("runs").run()
    page.multiselect(key="compare").set_value([one.id, two.id]).run()
    assert errors(page) == []
    assert len(page.get("plotly_chart")) == 2


def test_a_failed_run_shows_its_message_and_no_download(open_page: Open, make_run: Make) -> None:
    make_run(polarizer=False)
    page = open_page("runs").run()
    assert errors(page) == []
    assert any("Training diverged." in element.value for element in page.markdown)
    assert not page.get("download_button")


def test_no_runs(open_page: Open, tiny_zoo: str, runs_dir: Path) -> None:
    page = open_page("runs").run()
    assert errors(page) == []
    assert len(page.info) == 1


def test_unknown_run_of_the_url(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("runs", run="ffffffffffffffff").run()
    assert len(errors(page)) == 1
    assert page.selectbox(key="inspect").value == run.id


def test_damaged_run_is_named_and_can_be_deleted_with_undo(open_page: Open, make_run: Make) -> None:
    good, bad = make_run(seed=1), make_run(seed=2)
    (bad.folder / "request.json").write_text("{ not json")
    page = open_page("runs").run()
    assert errors(page) == []
    assert bad.id in page.warning[0].value
    assert list(page.dataframe[0].value["id"]) == [good.id]
    page.button(key=f"delete-{bad.id}").click().run()
    assert errors(page) == []
    assert not page.warning
    assert not bad.folder.exists()
    page.button(key="undo-delete").click().run()
    assert bad.id in page.warning[0].value
    button(page, "delete").click().run()
    assert errors(page) == []
    assert not good.folder.exists()
    page.button(key="undo-delete").click().run()
    assert list(page.dataframe[0].value["id"]) == [good.id]


@pytest.mark.parametrize(
    "name", ["runs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("story", "lab", "comparison"))]
)
def test_pages_go_on_where_runs_are_damaged(name: str, open_page: Open, make_run: Make) -> None:
    good = make_run(seed=1)
    for seed in (6, 7, 8, 9, 10):
        mutate(make_run(seed=seed).folder, seed)
    listed = [run.id for run in RunStore(good.folder.parent).list()]
    page = open_page(name, run=good.id).run()
    assert errors(page) == []
    for run_id in listed:
        page = open_page(name, run=run_id).run()
        assert not page.exception, (run_id, page.exception)


def test_filters_choose_rows_and_a_note_stays_with_its_run(
    open_page: Open, make_run: Make, make_baseline: Make
) -> None:
    run, repaired = make_run(), make_baseline("fp")
    page = open_page("runs", run=run.id).run()
    page.text_input(key=f"note-{run.id}").set_value("![x](http://host) best").run()
    assert errors(page) == []
    assert RunStore(run.folder.parent).note(run.id) == "![x](http://host) best"
    page.multiselect(key="of_defense").set_value(["npd"]).run()
    table = page.dataframe[0].value
    assert list(table["id"]) == [run.id]
    assert list(table["note"]) == ["![x](http://host) best"]
    page.multiselect(key="of_defense").set_value([]).run()
    assert set(page.dataframe[0].value["id"]) == {run.id, repaired.id}
    page.multiselect(key="of_state").set_value(["finished"]).run()
    assert len(page.dataframe[0].value) == 2


def test_stop_cancels_the_run(
    open_page: Open,
    make_run: Make,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from npd_core.runs import queue
    from npd_core.runs.store import Owner

    cancelled: list[str] = []

    class Manager:
        def cancel(self, run_id: str) -> None:
            cancelled.append(run_id)

        def position(self, run_id: str) -> int:
            return 3

    monkeypatch.setattr(queue, "manager", Manager)
    model = make_run().request.model
    store = RunStore(runs_dir)
    owner = Owner(runs_dir)
    run_id = store.create(DefenseRequest(model=model, clean=24), owner=owner.name)
    page = open_page("runs", run=run_id).run()
    assert errors(page) == []
    assert any("position 3;" in element.value for element in page.markdown)
    store.set_state(run_id, "running", started=1.0)
    page = open_page("runs", run=run_id).run()
    assert errors(page) == []
    button(page, "stop").click().run()
    assert errors(page) == []
    assert cancelled == [run_id]
    store.set_state(run_id, "stopped", ended=2.0)


def test_a_page_that_runs_alone_names_the_url_of_the_lab(open_page: Open, make_run: Make) -> None:
    run = make_run()
    page = open_page("runs", run=run.id).run()
    button(page, "open").click().run()
    assert errors(page) == []
    assert any(f"lab?run={run.id}" in element.value for element in page.info)


def test_a_newer_run_does_not_replace_the_one_shown(open_page: Open, make_run: Make) -> None:
    """The run and its buttons stay when somebody else starts a run meanwhile."""
    first = make_run(seed=1)
    page = open_page("runs").run()
    assert page.selectbox(key="inspect").value == first.id
    second = make_run(seed=2)
    page.run()
    assert errors(page) == []
    assert page.dataframe[0].value["id"].iloc[0] == second.id
    assert page.selectbox(key="inspect").value == first.id
    page.query_params["run"] = second.id
    page.run()
    assert page.selectbox(key="inspect").value == second.id


def test_a_comparison_survives_a_visit_to_another_page(open_page: Open, make_run: Make) -> None:
    ids = [make_run(seed=1).id, make_run(seed=2).id]
    page = open_page("runs", compare=",".join(ids)).run()
    page.query_params.clear()  # as the menu does
    page.run()
    assert errors(page) == []
    assert page.multiselect(key="compare").value == ids
    assert page.query_params["compare"] == ",".join(ids)


def test_pages_work_when_the_folder_of_the_runs_is_a_file(
    tiny_zoo: str, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("NPD_RUNS_DIR", str(file))
    page = open_page("glossary").run()
    assert [str(file) in sentence for sentence in errors(page)] == [True]
    assert page.title[0].value == "Glossary"
