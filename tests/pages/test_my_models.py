"""The page for models that a visitor imports."""

from __future__ import annotations

import io
import json
import shutil
import time
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.data.load import load_dataset
from npd_core.names import DATASET_TITLES
from npd_core.runs.queue import manager
from npd_core.runs.store import RunStore
from npd_core.uploads.store import Settings, import_model
from npd_core.zoo import Zoo
from npd_core.zoo.card import Card

Open = Callable[..., AppTest]


def errors(page: AppTest) -> list[str]:
    assert not page.exception, page.exception
    return [element.value for element in page.error]


@pytest.fixture
def files(tiny_zoo: str, runs_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and a zip archive of clean images."""
    torch.save(Zoo().load(tiny_zoo).net.net.state_dict(), tmp_path / "net.pt")
    data = load_dataset("signs", "test")
    with zipfile.ZipFile(tmp_path / "clean.zip", "w") as archive:
        for k in range(96):
            file = io.BytesIO()
            Image.fromarray(data.images[k].permute(1, 2, 0).numpy()).save(file, "PNG")
            archive.writestr(f"{int(data.labels[k])}/{k}.png", file.getvalue())
    return tmp_path / "net.pt", tmp_path / "clean.zip"


@pytest.fixture
def imported(files: tuple[Path, Path]) -> Card:
    return import_model(*files, Settings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))


def upload(page: AppTest, files: tuple[Path, Path]) -> None:
    for name, path in zip(("upload_checkpoint", "upload_clean"), files, strict=True):
        page.file_uploader(key=name).upload(path.name, path.read_bytes())


def test_the_server_takes_uploads_as_large_as_the_page_offers(
    open_page: Open, tiny_zoo: str, runs_dir: Path
) -> None:
    most = tomllib.loads((paths.ROOT / ".streamlit" / "config.toml").read_text())["server"]["maxUploadSize"]
    page = open_page("my_models").run()
    assert errors(page) == []
    offered = {box.key: box.proto.max_upload_size_mb for box in page.file_uploader}
    assert offered["upload_checkpoint"] >= 45, "a network of width 64"
    assert max(offered.values()) <= most


def test_files_are_checked_and_the_model_opens(open_page: Open, files: tuple[Path, Path]) -> None:
    page = open_page("my_models").run()
    assert errors(page) == []
    assert page.button(key="upload_import").disabled
    upload(page, files)
    page.selectbox(key="upload_normalization").set_value(DATASET_TITLES["signs"])
    page.run()
    page.button(key="upload_import").click().run()
    assert errors(page) == []
    (uploaded,) = (
        page.query_params["uploaded_model"]
        if isinstance(page.query_params["uploaded_model"], list)
        else [page.query_params["uploaded_model"]]
    )
    assert paths.uploaded(uploaded) is not None
    accuracy, trained_on, held_out = (metric.value for metric in page.metric)
    assert trained_on == held_out == "48"
    assert float(accuracy.rstrip("%")) > 90
    assert page.selectbox(key="uploaded_layer").value == "stream:layer4.0"


def test_refused_files_are_one_message_and_nothing_is_kept(open_page: Open, files: tuple[Path, Path]) -> None:
    page = open_page("my_models").run()
    wrong = files[1].with_name("wrong.pt")
    wrong.write_bytes(files[1].read_bytes())
    upload(page, (wrong, files[1]))
    page.run()
    page.button(key="upload_import").click().run()
    assert len(errors(page)) == 1
    assert "uploaded_model" not in page.query_params
    assert not paths.uploads().exists()


def test_train_compare_and_remove(open_page: Open, imported: Card) -> None:
    page = open_page("my_models", uploaded_model=imported.id).run()
    assert errors(page) == []
    page.slider(key="uploaded_epochs").set_value(1)
    page.run()
    page.button(key="uploaded_start").click().run()
    assert errors(page) == []
    (run,) = manager().store.list()
    assert run.request.model == imported.id
    assert run.request.clean == 48
    run = manager().wait(run.id, 60)
    assert (run.state, run.message) == ("finished", "")
    time.sleep(0.05)
    page.run()
    assert errors(page) == []
    assert page.query_params["uploaded_run"] == run.id
    newer = RunStore(run.folder.parent).create(replace(run.request, clean=24))
    for query, shown in (({}, newer), ({"uploaded_run": run.id}, run.id)):
        other = open_page("my_models", uploaded_model=imported.id, **query).run()
        assert other.selectbox(key="uploaded_run").value == shown
    shutil.rmtree(run.folder.parent / newer)
    assert len(page.metric) == 4, "three of the model, ACC of the run: no ASR and RA without a trigger"
    assert [info.icon for info in page.info] == [":material/info:"]
    assert len(page.get("download_button")) == 4
    page.button(key="uploaded_resistance").click().run()
    assert errors(page) == []
    shares = page.dataframe[-1].value.iloc[:, 1]
    assert len(shares) == 3
    assert shares.between(0, 1).all()
    page.button(key="uploaded_remove").click().run()
    assert errors(page) == []
    assert not imported.folder.exists()
    assert not {"uploaded_model", "uploaded_run"} & set(page.query_params)
    assert page.button(key="upload_import").disabled


def test_the_model_is_shown_again_after_another_page_until_another_is_imported(
    open_page: Open, imported: Card
) -> None:
    page = open_page("my_models", uploaded_model=imported.id).run()
    page.query_params.clear()  # as the menu does
    page.run()
    assert errors(page) == []
    assert page.query_params["uploaded_model"] == imported.id
    assert page.button(key="uploaded_start")
    page.button(key="uploaded_another").click().run()
    for _ in range(2):
        assert errors(page) == []
        assert "uploaded_model" not in page.query_params
        assert page.button(key="upload_import").disabled
        page.run()


def test_unknown_and_foreign_ids(open_page: Open, tiny_zoo: str, runs_dir: Path) -> None:
    page = open_page("my_models", uploaded_model="own-0123456789abcdef").run()
    assert ["own-0123456789abcdef" in text for text in errors(page)] == [True]
    page.query_params.clear()
    page.run()
    assert "uploaded_model" not in page.query_params, "it is forgotten"
    page = open_page("my_models", uploaded_model=tiny_zoo).run()
    assert [tiny_zoo in text for text in errors(page)] == [True]
    assert page.button(key="upload_import").disabled


def test_a_clean_model_of_the_zoo_is_not_taken_for_an_imported_one(
    tiny_zoo_folder: Path, tiny_zoo: str, runs_dir: Path, tmp_path: Path, open_page: Open, monkeypatch
) -> None:
    clean_model = tmp_path / "zoo" / "signs-clean-preact_resnet18-w4"
    shutil.copytree(tiny_zoo_folder / tiny_zoo, clean_model)
    card = json.loads((clean_model / "card.json").read_text())
    card |= {
        "id": clean_model.name,
        "attack": "clean",
        "attack_params": {},
        "target": "none",
        "asr": None,
        "ra": None,
    }
    (clean_model / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("NPD_ZOO_DIR", str(clean_model.parent))
    page = open_page("my_models", uploaded_model=clean_model.name).run()
    assert [clean_model.name in text for text in errors(page)] == [True]
    assert page.button(key="upload_import").disabled


def test_runs_of_imported_models_are_not_shown_to_others(open_page: Open, imported: Card) -> None:
    from npd_core.config.presets import defense_config
    from npd_core.config.request import DefenseRequest
    from npd_core.runs.store import RunStore

    RunStore(paths.runs()).create(
        DefenseRequest(model=imported.id, clean=48, config=defense_config("npd", imported))
    )
    page = open_page("runs").run()
    assert errors(page) == []
    assert not page.dataframe
    page = open_page("runs")
    page.session_state["_uploaded"] = {imported.id}
    page.run()
    assert errors(page) == []
    assert list(page.dataframe[0].value["model"]) == [imported.id]
