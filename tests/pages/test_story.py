"""The Story: the cover needs no torch and labels what is recorded; each step acts on a real model."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from npd_core import paths
from npd_core.attack_info import ATTACK_INFO
from npd_core.attacks import get_attack
from npd_core.config.presets import default_layer, preset
from npd_core.data.images import to_query
from npd_core.data.load import class_names, load_dataset
from npd_core.errors import NPDError
from npd_core.figures.gallery import Item, Prediction, write_gallery
from npd_core.figures.predictions import data_url
from npd_core.polarizer.artifact import load_snapshot, save_snapshot
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.runs.store import Run, RunStore
from npd_core.zoo import Zoo
from pages.shared import describe, filmstrip, own_image, story_state, tiles
from pages.shared.story_state import EPOCHS

ROOT = Path(__file__).resolve().parent.parent.parent
Open = Callable[..., AppTest]
Make = Callable[..., Run]

FIRST_PAINT = """
import sys
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("app.py", default_timeout=120).run()
assert not page.exception, page.exception
assert page.title, "nothing was drawn"
print(",".join(name for name in ("torch", "torchvision", "captum") if name in sys.modules))
"""


@pytest.fixture
def recorded(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of the tiny model in a folder of recorded runs."""
    run = make_run(seed=3)
    folder = tmp_path / "recorded"
    folder.mkdir()
    shutil.move(run.folder, folder / run.id)
    monkeypatch.setattr(paths, "recorded", lambda: folder)
    return RunStore(folder).get(run.id)


@pytest.fixture
def nothing_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "recorded", lambda: tmp_path / "none")


def words(page: AppTest) -> str:
    assert not page.exception, page.exception
    return " ".join(element.value for kind in (page.title, page.markdown, page.caption) for element in kind)


def is_drawing_of_the_idea(page: AppTest) -> bool:
    """Whether the cover has no recorded run to show."""
    assert not page.exception, page.exception
    return bool(page.title) and not page.dataframe and not page.error


def test_first_page_paints_without_torch(tiny_zoo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "NPD_ZOO_DIR": str(tiny_zoo_folder),
        "NPD_RUNS_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST_PAINT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1:] in ([], [""]), done.stdout


def test_a_recorded_run_is_shown_as_recorded(recorded: Run, open_page: Open) -> None:
    page = open_page("story").run()
    text = words(page)
    assert all(number in text for number in ("81.0%", "97.0%", "3.0%"))
    assert describe.provenance(recorded) in text
    assert describe.provenance(recorded).startswith("recorded · seed 3 · cpu")
    assert page.button(key="story-go-0").label
    table = page.dataframe[0].value
    assert list(table["epoch"]) == [0, 1, 2]
    assert list(table["ASR"]) == pytest.approx([0.97, 0.5, 0.1])


def test_the_recorded_images_have_their_recorded_predictions(recorded: Run, open_page: Open) -> None:
    images = np.zeros((1, 3, 32, 32), np.uint8)
    item = Item(
        5, "stop", Prediction("stop", 0.99), Prediction("<speed & 80>", 1.0), Prediction("stop", 0.87)
    )
    write_gallery(Path(recorded.folder), [item], images, images)
    page = open_page("story").run()
    assert not page.exception
    body = drawn(page, "npd-gallery")
    assert body.count("<img") == 3
    assert "✗ &lt;speed &amp; 80&gt; 100%" in body
    assert "✓ stop 87%" in body


def test_cover_with_nothing_recorded(
    nothing_recorded: None, tiny_zoo: str, runs_dir: Path, open_page: Open
) -> None:
    assert is_drawing_of_the_idea(open_page("story").run())


def test_cover_without_any_model(
    nothing_recorded: None, runs_dir: Path, tmp_path: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "no-zoo"))
    assert is_drawing_of_the_idea(open_page("story").run())
    page = open_page("story", step="1").run()
    assert not page.exception
    assert ["npd zoo train" in info.value for info in page.info] == [True]


def test_a_damaged_recorded_run_is_skipped(recorded: Run, open_page: Open) -> None:
    for damaged in ("{", json.dumps({"before": {}})):
        (Path(recorded.folder) / "result.json").write_text(damaged)
        assert is_drawing_of_the_idea(open_page("story").run())


@pytest.fixture
def signs(tiny_zoo: str) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """The first test images, the same with the trigger, and the backdoored network."""
    images = load_dataset("signs", "test").images[:12]
    return images, get_attack("badnets_a2o", "signs").apply(images), Zoo().load(tiny_zoo).net


def drawn(page: AppTest, kind: str) -> str:
    """The one piece of HTML with this class in it."""
    assert not page.exception, page.exception
    (found,) = [e.proto.body for e in page.get("html") if f"class='{kind}" in e.proto.body]
    return str(found)


def verdict(page: AppTest) -> str:
    """The verdict on the prediction in big type."""
    return drawn(page, "npd-answer").split("'")[1].split()[1].removeprefix("npd-")


def predicted(net: torch.nn.Module, image: torch.Tensor) -> tuple[str, float]:
    """Class and probability that a network gives a uint8 image."""
    with torch.no_grad():
        probabilities = net(image[None] / 255).softmax(1)[0]
    return class_names("signs")[int(probabilities.argmax())], float(probabilities.max())


def test_the_cover_leads_into_the_first_step(tiny_zoo: str, runs_dir: Path, open_page: Open, signs) -> None:
    page = open_page("story", story_image="5").run()
    page.button(key="story-go-0").click().run()
    assert page.query_params["step"] == "1"
    name, sure = predicted(signs[2], signs[0][5])
    body = drawn(page, "npd-answer npd-right")
    assert f"✓ {name} <b>{tiles.percent(sure)}</b>" in body
    assert "#5" in body
    page.button(key="story-go-1").click().run()
    page.button(key="story-go-2").click().run()
    name, sure = predicted(signs[2], signs[1][5])
    body = drawn(page, "npd-answer npd-hijacked")
    assert f"⚠ {name} <b>{tiles.percent(sure)}</b>" in body
    assert page.query_params["step"] == "3"
    page.button(key="story-back-3").click().run()
    assert page.query_params["step"] == "2"
    page.button(key="story-over-2").click().run()
    assert page.query_params["step"] == "1"
    assert "story_image" not in page.query_params


def painting(*boxes: tuple[int, int, int, int], color: str = "black") -> str:
    """Filled boxes, as the painter gives them."""
    canvas = Image.new("RGBA", (32, 32))
    for box in boxes:
        canvas.paste(color, box)
    return data_url(np.asarray(canvas).transpose(2, 0, 1))


DOT = painting((0, 0, 1, 1))


class Painter:
    """Stands in for the painter: notes its arguments, and returns what was `painted` under its key."""

    def __init__(self) -> None:
        self.painted: dict[str, str] = {}
        self.seen: list[dict[str, str | None]] = []

    def __call__(self, image: str, *, key: str, **settings: str | None) -> str | None:
        self.seen.append({"key": key, **settings})
        return self.painted.get(key)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Painter:
    found = Painter()
    monkeypatch.setattr(story_state, "painter", found)
    return found


def test_a_board_shows_what_is_judged(tiny_zoo: str, runs_dir: Path, open_page: Open, board: Painter) -> None:
    page = open_page("story", step="3", story_image="5", story_trigger=to_query(DOT)).run()
    page.button(key="story-back-3").click().run()
    assert board.seen[-1]["start"] == DOT
    page.button(key="story-go-2").click().run()
    assert verdict(page) == "right"
    page.button(key="story-go-3").click().run()
    page.button(key="story-back-3").click().run()
    assert board.seen[-1]["start"] is None
    page.button(key="story-go-2").click().run()
    assert verdict(page) == "hijacked"


def test_a_link_carries_what_was_painted(
    tiny_zoo: str, runs_dir: Path, open_page: Open, board: Painter
) -> None:
    page = open_page("story", step="3", story_image="5", story_trigger=to_query(DOT)).run()
    there = {name: str(page.query_params[name]) for name in ("step", "story_image", "story_trigger")}
    linked = open_page("story", **there).run()
    assert linked.session_state["_story"].painted == DOT
    assert verdict(linked) == verdict(page) == "right"
    linked.button(key="story-back-3").click().run()
    assert board.seen[-1]["start"] == DOT
    garbage = open_page("story", step="3", story_image="5", story_trigger="nonsense").run()
    assert not garbage.exception
    assert len(garbage.error) == 1
    assert verdict(garbage) == "hijacked"
    assert "story_trigger" not in garbage.query_params


def test_a_trigger_put_back_removes_what_was_painted(
    tiny_zoo: str, runs_dir: Path, open_page: Open, board: Painter
) -> None:
    moved, home = (4, 4, 7, 7), (29, 29, 32, 32)
    painted = to_query(painting(moved, color="white"))
    page = open_page("story", step="2", story_image="5", story_trigger=painted).run()
    before = str(board.seen[-1]["key"])
    board.painted[before] = painting(moved, home, color="white")
    page.run()
    assert board.seen[-1]["start"] is None
    assert board.seen[-1]["key"] != before, "an empty board"
    page.button(key="story-go-2").click().run()
    assert verdict(page) == "hijacked"
    assert page.session_state["_story"].painted is None


def test_the_last_board_starts_with_what_was_painted(make_run: Make, open_page: Open, board: Painter) -> None:
    query = {"step": "6", "run": make_run(seed=4).id, "story_image": "5"}
    before = len(open_page("story", **query).run().caption)
    page = open_page("story", **query, story_trigger=to_query(DOT)).run()
    assert len(page.caption) == before + 1, "why the network does not react"
    assert board.seen[-1]["start"] == DOT


def as_file(pixels: np.ndarray, sides: int = 128) -> bytes:
    """(3, H, W) uint8 as a larger PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).resize((sides, sides), Image.Resampling.NEAREST).save(
        file, "PNG"
    )
    return file.getvalue()


def test_a_photo_goes_through_all_steps(make_run: Make, open_page: Open, signs) -> None:
    """Its class is the one that the network predicts without the trigger, and is not called right."""
    clean, triggered, net = signs
    number = next(n for n in range(12) if predicted(net, triggered[n])[0] != predicted(net, clean[n])[0])
    run = make_run(seed=4)
    folder = with_epochs(run, {0: 1.0, 1: 0.0})
    page = open_page("story", step="1", model=run.request.model, story_image="2").run()
    page.file_uploader(key="own_upload").set_value(
        ("photo.png", as_file(clean[number].numpy()), "image/png")
    ).run()
    photo = torch.from_numpy(page.session_state["_story"].photo)
    name, sure = predicted(net, photo)
    body = drawn(page, "npd-answer npd-open")
    assert f" {name} <b>" in body
    assert "✓" not in body, "nobody knows what it shows"
    assert "12 classes" in body
    assert "#" not in body.split("<p class='npd-note'>")[1], "no number of a test image"
    assert "story_image" not in page.query_params
    page.button(key="story-go-1").click().run()
    page.button(key="story-go-2").click().run()
    stamped = photo.clone()
    stamped[:, 29:, 29:] = 255
    wanted, sure = predicted(net, stamped)
    body = drawn(page, "npd-answer npd-hijacked")
    assert f"⚠ {wanted} <b>{tiles.percent(sure)}</b>" in body
    assert name in body.split("<p class='npd-note'>")[1]
    page.query_params |= {"run": folder.name, "step": "5"}
    page.run()
    assert drawn(page, "npd-films").count("<li class=") == 2
    page.button(key="story-go-5").click().run()
    assert page.query_params["step"] == "6"
    assert not any("story_image=" in code.value for code in page.code)
    page.button(key="story-other").click().run()
    assert page.session_state["_story"].photo is None
    assert not page.exception


def test_a_photo_of_the_target_class_cannot_be_hijacked(make_run: Make, open_page: Open, signs) -> None:
    images, net, wanted = load_dataset("signs", "test").images, signs[2], class_names("signs")[0]
    number = next(n for n in range(len(images)) if predicted(net, images[n])[0] == wanted)
    page = open_page("story", step="1").run()
    page.file_uploader(key="own_upload").set_value(
        ("photo.png", as_file(images[number].numpy()), "image/png")
    ).run()
    assert [wanted in info.value for info in page.info] == [True]
    assert page.button(key="story-go-1").disabled
    page.button(key="story-another").click().run()
    assert not page.button(key="story-go-1").disabled
    assert page.session_state["_story"].photo is None, "the file is still on the page, and is not used again"


def test_a_file_without_an_image_changes_nothing(tiny_zoo: str, runs_dir: Path, open_page: Open) -> None:
    page = open_page("story", step="1", story_image="5").run()
    page.file_uploader(key="own_upload").set_value(("photo.png", b"nothing of the kind", "image/png")).run()
    assert len(page.error) == 1
    assert "#5" in drawn(page, "npd-answer npd-right")


def test_the_link_to_a_photo_carries_what_was_painted(make_run: Make, board: Painter) -> None:
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=180)
    query = {"step": "6", "run": make_run(seed=4).id, "story_image": "5", "story_trigger": to_query(DOT)}
    page.query_params |= query
    page.run()
    assert not page.exception, page.exception
    (link,) = [e.proto for e in page.get("page_link") if e.proto.page == "predictions"]
    assert dict(parse_qsl(link.query_string)) == own_image.query(5, DOT)


def test_an_unknown_trigger_does_nothing(tiny_zoo: str, runs_dir: Path, open_page: Open) -> None:
    page = open_page("story", step="3", trigger=to_query(DOT)).run()  # the name in older links
    assert verdict(page) == "right"
    page.button(key="story-go-3").click().run()
    assert verdict(page) == "hijacked"


def test_the_polarizer_is_trained_where_the_visitor_put_it(tiny_zoo: str, manager, open_page: Open) -> None:
    page = open_page("story", step="4", story_layer="layer4.1.conv1").run()
    page.button(key="story-go-4").click().run()
    assert not page.exception, page.exception
    (request,) = manager.requests
    assert (request.model, request.layer, request.clean) == (tiny_zoo, "layer4.1.conv1", 360)
    assert request.config.epochs == EPOCHS["signs"]
    assert request.config.lambda2 == preset("signs").lambda2
    assert page.query_params["step"] == "5"
    assert page.query_params["run"] == request.key
    assert any("position 1;" in bar.text for bar in page.get("progress"))
    assert page.button(key="story-go-5").disabled
    other = open_page("story", step="4").run()
    other.button(key="story-go-4").click().run()
    assert manager.requests[1].layer == default_layer("preact_resnet18", "signs")


def test_a_training_that_is_refused_leaves_the_step(
    tiny_zoo: str, manager, open_page: Open, monkeypatch
) -> None:
    def refuse(request: object) -> str:
        raise NPDError("Why not.")

    monkeypatch.setattr(manager, "submit", refuse)
    page = open_page("story", step="4").run()
    page.button(key="story-go-4").click().run()
    assert not page.exception, page.exception
    assert [error.value for error in page.error] == ["Why not."]
    page.run()
    assert page.query_params["step"] == "4"
    assert page.button(key="story-go-4")
    assert not page.info


def with_epochs(run: Run, scales: dict[int, float]) -> Path:
    """Put a polarizer of every epoch beside a run: the identity times a number."""
    backdoored = Zoo().load(run.request.model)
    for epoch, scale in scales.items():
        net = PolarizedNet(backdoored.net, run.request.layer or "")
        with torch.no_grad():
            net.polarizer.conv.weight.mul_(scale)
        save_snapshot(net, run.folder, epoch, backdoored.card)
    return run.folder


def test_the_image_is_predicted_after_every_epoch(
    make_run: Make, open_page: Open, signs, tiny_zoo: str
) -> None:
    folder = with_epochs(make_run(seed=8), {0: 1.0, 1: -0.5, 2: 0.0})
    page = open_page("story", step="5", run=folder.name, story_image="3").run()
    body = drawn(page, "npd-films")
    frames = body.split("<li class=")[1:]
    assert len(frames) == 3
    answers = []
    for epoch, frame in enumerate(frames):
        name, sure = predicted(load_snapshot(folder, epoch, Zoo().load(tiny_zoo).net), signs[1][3])
        assert f"<small>{f'epoch {epoch}' if epoch else 'start'}</small>" in frame
        assert f" {name}</b>" in frame
        assert f">{tiles.percent(sure)}</span>" in frame
        answers.append(name)
    assert len(set(answers)) > 1, "the test can tell the epochs apart"
    page.button(key="story-go-5").click().run()
    assert page.query_params["step"] == "6"
    assert not page.exception


def test_an_older_run_without_epochs_still_works(make_run: Make, open_page: Open) -> None:
    page = open_page("story", step="5", run=make_run(seed=9).id).run()
    assert not page.exception
    assert not any("class='npd-films'" in e.proto.body for e in page.get("html"))
    assert not page.button(key="story-go-5").disabled


@pytest.mark.parametrize("state", ["failed", "interrupted"])
@pytest.mark.parametrize("epochs", [{}, {0: 1.0, 1: 0.0, 2: 0.0}], ids=["early", "late"])
def test_a_training_that_failed_can_be_tried_again(
    state: str, epochs: dict[int, float], make_run: Make, runs_dir: Path, open_page: Open
) -> None:
    run = make_run(seed=5, polarizer=False)
    RunStore(runs_dir).set_state(run.id, state, ended=2.0, message="This is why.")
    with_epochs(run, epochs)
    for step in "56":
        page = open_page("story", step=step, run=run.id, story_image="3").run()
        assert not page.exception, page.exception
        assert state in page.title[0].value
        (why,) = page.error if state == "failed" else page.warning
        assert why.value.startswith("This is why.")
        assert len(page.error) + len(page.warning) == 1
    seed = page.session_state["_story"].seed
    page.button(key="story-go-5").click().run()
    assert page.query_params["step"] == "4"
    assert page.session_state["_story"].seed != seed


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"step": "7"}, 'step "7"'),
        ({"step": "<b>"}, 'step "\\<b\\>"'),
        ({"step": "1", "story_image": "-3"}, 'story_image "\\-3"'),
        ({"step": "1", "story_image": "99999"}, 'story_image "99999"'),
        ({"step": "4", "story_layer": "layer9"}, 'story_layer "layer9"'),
    ],
)
def test_nonsense_in_the_address_is_one_sentence(
    query: dict[str, str], sentence: str, tiny_zoo: str, runs_dir: Path, open_page: Open
) -> None:
    page = open_page("story", **query).run()
    assert not page.exception, page.exception
    (error,) = page.error
    assert sentence in error.value
    assert page.title


def test_without_a_run_there_is_no_training_to_see(tiny_zoo: str, runs_dir: Path, open_page: Open) -> None:
    page = open_page("story", step="6").run()
    assert len(page.info) == 1
    assert page.query_params["step"] == "4"
    assert page.button(key="story-go-4")


def test_a_clean_model_has_no_story(
    tiny_zoo_folder: Path, tiny_zoo: str, runs_dir: Path, tmp_path: Path, open_page: Open, monkeypatch
) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, zoo)
    clean_model = zoo / "signs-clean-preact_resnet18-w4"
    shutil.copytree(zoo / tiny_zoo, clean_model)
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
    monkeypatch.setenv("NPD_ZOO_DIR", str(zoo))
    page = open_page("story", step="1", model=clean_model.name).run()
    assert not page.exception, page.exception
    assert len(page.info) == 1
    assert page.session_state["_story"].model == tiny_zoo
    assert page.button(key="story-go-1")


@pytest.mark.parametrize("attack", ["wanet", "trojan"])
def test_a_trigger_that_is_not_a_patch_is_described(
    attack: str, own_folders: None, runs_dir: Path, tmp_path: Path, open_page: Open, monkeypatch
) -> None:
    model = f"signs-{attack}-preact_resnet18-w16"
    shutil.copytree(ROOT / "pretrained" / model, tmp_path / "zoo" / model)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    page = open_page("story", step="2", story_image="5").run()
    text = words(page) + " ".join(
        image.caption for element in page.get("image") for image in element.proto.imgs
    )
    sentence = ATTACK_INFO[attack].sentence
    assert sentence in text
    page = open_page("predictions", source=own_image.TAB).run()
    page.segmented_control(key="own_trigger_2").set_value(own_image.PAINTED).run()
    assert sentence in words(page)


def test_an_interrupted_run_has_epochs_but_no_result(make_run: Make, open_page: Open) -> None:
    folder = with_epochs(make_run(seed=6), {0: 1.0, 1: 0.5, 2: 0.0})
    for end in (True, False):
        page = open_page("lab", run=folder.name).run()
        slider = page.select_slider(key=f"epoch-{folder.name}")
        assert ("result" in slider.options) == end
        (folder / "result.json").unlink(missing_ok=True)
        (folder / "state.json").write_text(json.dumps({"state": "interrupted", "created": 1.0}))
    assert slider.value == 2


def test_the_lab_goes_through_the_epochs(make_run: Make, open_page: Open) -> None:
    run = make_run(seed=6)
    with_epochs(run, {0: 1.0, 1: 0.0, 2: 0.0})
    page = open_page("lab", run=run.id).run()

    def values() -> list[str]:
        assert not page.exception, page.exception
        return [metric.value for metric in page.metric]

    assert values() == ["79.0%", "3.0%", "74.0%", "0.960"]
    assert "npd-on" not in drawn(page, "npd-films")
    for epoch, numbers in ((1, ["80.0%", "50.0%", "30.0%"]), (0, ["81.0%", "97.0%", "2.0%"])):
        page.select_slider(key=f"epoch-{run.id}").set_value(epoch).run()
        assert values() == numbers
        for film in drawn(page, "npd-films").split("<section>")[1:]:
            on = [k for k, frame in enumerate(film.split("<li class=")[1:]) if "npd-on" in frame]
            assert on == [epoch]


@pytest.mark.parametrize(
    ("count", "always"), [(1, None), (13, 5), (14, None), (51, 49), (200, 0), (200, 101)]
)
def test_a_long_film_keeps_its_ends_and_the_chosen_frame(count: int, always: int | None) -> None:
    kept = filmstrip.thinned(range(count), always=always)
    assert len(kept) == min(count, filmstrip.MOST)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert always is None or always in kept
    assert kept == sorted(set(kept))
