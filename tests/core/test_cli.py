"""The command line: its JSON, its exit codes, its one-line refusals, and what it leaves on disk."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path

import pytest

from npd_core import cli
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd
from npd_core.jobs.store import read_record
from npd_core.polarizer.config import NPDConfig

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ("--epochs", "1", "--warmup-epochs", "0", "--clean", "24", "--batch-size", "12")


@pytest.fixture(autouse=True)
def calm_terminal(monkeypatch):
    """No bar is drawn, whatever terminal the tests run in."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)


def run(capsys, *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command in this process."""
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *words: str | Path) -> str:
    """The one line with which a command is refused."""
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("npd: ")
    assert err.count("\n") == 1
    return err


# what is printed


def test_models_as_json(capsys, tiny_zoo, tiny_zoo_folder):
    code, out, err = run(capsys, "models", "--json", "-")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)
    size = (tiny_zoo_folder / tiny_zoo / "model.safetensors").stat().st_size
    expected = {"id": tiny_zoo, "dataset": "signs", "attack": "badnets_a2o", "arch": "preact_resnet18", "width": 4}
    expected |= {"acc": 0.990278, "asr": 1.0, "bytes": size, "data_available": True}
    assert {name: row[name] for name in expected} == expected


def test_models_as_a_table(capsys, tiny_zoo):
    code, out, _ = run(capsys, "models")
    assert code == 0
    head, row = out.splitlines()
    assert head.split() == ["model", "ACC", "%", "ASR", "%", "size", "data", "here"]
    assert row.split()[:3] == [tiny_zoo, "99.03", "100.00"]


def test_models_of_an_empty_zoo(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    assert run(capsys, "models") == (0, "The zoo is empty: `npd zoo train ID` makes a model.\n", "")


@pytest.mark.parametrize("words", [("data",), ("data", "list")])
def test_data_says_what_is_here_and_what_to_do_for_the_rest(capsys, tmp_path, monkeypatch, words):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    code, out, _ = run(capsys, *words)
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0
    assert list(rows) == ["signs", "cifar10", "gtsrb", "tiny_imagenet"]
    assert "yes" in rows["signs"]
    assert "npd data get cifar10" in rows["cifar10"]


def test_data_as_json(capsys, real_data):
    code, out, _ = run(capsys, "data", "--json", "-")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert all(row["available"] for row in rows.values())
    assert set(rows["tiny_imagenet"]["splits"]) == {"clean", "test"}


@pytest.mark.parametrize("name", ["models", "data", "defend", "evaluate", "zoo", "bench"])
def test_help_names_every_command(capsys, name):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0
    assert f"  {name} " in capsys.readouterr().out


def test_help_of_defend_explains_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["defend", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in text for field in fields(NPDConfig))
    assert "Eq. 2" in text


# the main job


@pytest.fixture(scope="module")
def saved_once(tiny_zoo_folder, tmp_path_factory):
    """A defense of the tiny model, run once with everything that can be asked for: folder, JSON, stdout, stderr."""
    (model,) = os.listdir(tiny_zoo_folder)
    place = tmp_path_factory.mktemp("saved")
    words = [
        "defend",
        model,
        *QUICK,
        "--layer",
        "layer4.1.conv1",
        "--lambda2",
        "0.3",
        "--seed",
        "4",
        "--watch",
        "60",
        "--device",
        "cpu",
    ]
    words += ["--save", str(place / "run"), "--json", str(place / "numbers.json")]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("NPD_ZOO_DIR", str(tiny_zoo_folder))
        assert cli.main(words) == 0, err.getvalue()
    return place / "run", json.loads((place / "numbers.json").read_text()), out.getvalue(), err.getvalue()


@pytest.fixture
def saved(saved_once, tiny_zoo, tmp_path):
    """The same; the folder is a copy that may be spoilt."""
    shutil.copytree(saved_once[0], tmp_path / "run")
    return tmp_path / "run", *saved_once[1:]


def test_defend_prints_saves_and_evaluates_again(capsys, tiny_zoo, saved, saved_once):
    folder, value, out, err = saved
    assert {"model", "defense", "before", "after", "der", "seconds", "config", "environment"} <= set(value)
    assert (value["model"], value["defense"], value["layer"]) == (tiny_zoo, "npd", "layer4.1.conv1")
    assert value["before"] == pytest.approx({"acc": 0.990278, "asr": 1.0, "ra": 0.0}, abs=2e-3)
    assert set(value["seconds"]) == {"train", "evaluate"}
    assert all(0 <= share <= 1 for share in (*value["after"].values(), value["der"]))
    asked = {"lambda2": 0.3, "seed": 4, "epochs": 1, "batch_size": 12, "warmup_epochs": 0}
    assert {name: value["config"]["config"][name] for name in asked} == asked
    assert (value["config"]["clean"], value["config"]["watch"]) == (24, 60)

    assert "ASR" in out
    assert "DER" in out
    assert "Saved in " in out
    assert "epoch 1/1" in err
    assert "on 60 test images" in err

    assert sorted(os.listdir(saved_once[0].parent)) == ["numbers.json", "run"]
    record = read_record(folder)
    assert record.state == "finished"
    assert record.request.to_dict() == value["config"]
    kinds = [json.loads(line)["type"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert (kinds[0], kinds[-1]) == ("Started", "Finished")
    assert len(record.result["clean_indices"]) == 24

    code, out, _ = run(capsys, "evaluate", tiny_zoo, "--polarizer", folder, "--device", "cpu", "--json", "-")
    again = json.loads(out)
    assert code == 0
    assert (again["before"], again["after"], again["der"]) == (value["before"], value["after"], value["der"])
    assert again["layer"] == value["layer"]


def test_a_training_that_fails_exits_1_with_its_numbers(capsys, tiny_zoo, saved_once, tmp_path, monkeypatch):
    import npd_core.defend

    def run_defense(request, out=None, stop=None):
        yield Started(1, 0, 1, 24, "cpu")
        yield Failed("the loss became NaN.", -1, 0.5, result=saved_once[1])

    monkeypatch.setattr(npd_core.defend, "run_defense", run_defense)
    code, out, err = run(capsys, "defend", tiny_zoo, "--save", tmp_path / "run", "--json", "-")
    assert code == 1
    assert err == "npd: the training failed: the loss became NaN.\n"
    assert json.loads(out)["failed"] == "the loss became NaN."
    assert read_record(tmp_path / "run").state == "failed"


def test_json_on_the_screen_is_alone_there(capsys, tiny_zoo):
    code, out, err = run(capsys, "evaluate", tiny_zoo, "--images", "120", "--json", "-")
    value = json.loads(out)
    assert (code, err) == (0, "")
    assert value["after"] is None
    assert value["der"] is None
    assert value["before"]["acc"] > 0.9


def test_evaluate_as_a_table(capsys, tiny_zoo):
    code, out, _ = run(capsys, "evaluate", tiny_zoo, "--images", "120")
    assert code == 0
    assert out.splitlines()[0] == f"{tiny_zoo} · no defense"
    assert "triggered images given the attacker's class" in out


# the zoo


def spoil(folder: Path, source: Path) -> None:
    """A copy of a model with one bit of its weights turned."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            content[-1] ^= 1
        (folder / path.name).write_bytes(content)


def test_zoo_verify_of_a_sound_model(capsys, tiny_zoo):
    code, out, _ = run(capsys, "zoo", "verify", "--json", "-")
    (row,) = json.loads(out)
    assert (code, row["model"], row["ok"]) == (0, tiny_zoo, True)
    assert row["measured"]["acc"] == pytest.approx(row["card"]["acc"], abs=5e-3)


def test_zoo_verify_of_a_spoilt_model(capsys, tiny_zoo, tiny_zoo_folder, tmp_path, monkeypatch):
    spoil(tmp_path / tiny_zoo, tiny_zoo_folder / tiny_zoo)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    code, out, _ = run(capsys, "zoo", "verify", tiny_zoo)
    assert code == 1
    assert "NOT OK" in out
    assert "sha256" in out


def test_zoo_train_passes_on_what_was_asked_for(capsys, tiny_zoo, tiny_zoo_folder, monkeypatch):
    import npd_core.zoo.train as train

    card = json.loads((tiny_zoo_folder / tiny_zoo / "card.json").read_text())
    asked = {}

    def train_model(model, **settings):
        asked.update(settings, model=model)
        yield Started(2, 0, 1, 100, "cpu")
        yield StepEnd(0, 0, {"total": 0.5})
        yield EpochEnd(0, {"total": 0.5}, 1.0)
        yield Finished(0, 1.0, result=card)

    monkeypatch.setattr(train, "train_model", train_model)
    code, out, err = run(capsys, "zoo", "train", tiny_zoo, "--epochs", "2", "--seed", "3", "--poison-ratio", "0.05")
    assert code == 0
    assert asked == {"model": tiny_zoo, "poison_ratio": 0.05, "epochs": 2, "seed": 3, "device": "auto"}
    assert f"{tiny_zoo}: ACC 99.03 % · ASR 100.00 %" in out
    assert err == "epoch 1/2 · loss 0.500 · 1.0 s\n"


# speed


def test_bench_as_json(capsys, tiny_zoo):
    code, out, _ = run(capsys, "bench", "--layer", "layer4.1.conv1", "--clean", "24", "--device", "cpu", "--json", "-")
    report = json.loads(out)
    (row,) = report["results"]
    assert code == 0
    assert (row["model"], row["layer"]) == (tiny_zoo, "layer4.1.conv1")
    assert 4 < row["forward_equivalents_per_step"] <= 5.6
    assert all(row[name] > 0 for name in ("train_images_per_second", "eval_images_per_second", "seconds_per_epoch"))
    assert report["environment"]["device"] == "cpu"


# what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "required: COMMAND"),
        (("defned",), "Unknown command 'defned'. Did you mean 'defend'?"),
        (("sweep", "x"), "Unknown command 'sweep'."),
        (("data", "gett"), "Unknown command 'gett'. Did you mean 'get'?"),
        (("data", "get", "cifar"), "Unknown data set 'cifar'. Did you mean 'cifar10'?"),
        (("zoo",), "required: ACTION"),
        (("zoo", "train", "signs-badnets-preact_resnet18-w8"), "Unknown attack 'badnets'. Did you mean 'badnets_a2o'?"),
        (("zoo", "train", "resnet"), "is not a model id"),
        (("zoo", "verify", "nobody"), "Unknown model 'nobody'."),
        (("defend",), "required: MODEL"),
        (("defend", "MODEL", "more"), "does not take 'more'"),
        (("defend", "MODEL", "--lamda2", "0.4"), "Unknown option '--lamda2'. Did you mean '--lambda2'?"),
        (("defend", "signs-badnet-preact_resnet18-w4"), "Did you mean 'signs-badnets_a2o-preact_resnet18-w4'?"),
        (("defend", "MODEL", "--layer", "layr4.1.conv1"), "Did you mean 'layer4.1.conv1'?"),
        (("defend", "MODEL", "--layer", "features.3"), "Unknown layer 'features.3'."),
        (("defend", "MODEL", "--defense", "npdd"), "Unknown defense 'npdd'. Did you mean 'npd'?"),
        (("defend", "MODEL", "--lambda2", "-0.4"), "`lambda2` must be a number of at least 0, got -0.4"),
        (("defend", "MODEL", "--lambda2", "nan"), "`lambda2` must be a number of at least 0, got nan"),
        (("defend", "MODEL", "--lambda2", "much"), "--lambda2: must be a number, got 'much'"),
        (("defend", "MODEL", "--lambda2"), "--lambda2: expected one argument"),
        (("defend", "MODEL", "--rho", "0"), "`rho` must be a number above 0, got 0"),
        (("defend", "MODEL", "--norm", "l3"), "Unknown --norm 'l3'. Did you mean 'l"),
        (("defend", "MODEL", "--epochs", "0"), "`epochs` must be a whole number of at least 1, got 0"),
        (("defend", "MODEL", "--epochs", "2.5"), "--epochs: must be a whole number, got '2.5'"),
        (("defend", "MODEL", "--clean", "0"), "`clean` must be a share in (0, 1] or a whole number of images, got 0"),
        (("defend", "MODEL", "--clean", "-5"), "`clean` must be"),
        (("defend", "MODEL", "--clean", "1.5"), "`clean` must be"),
        (("defend", "MODEL", "--clean", "9999999"), "9999999"),
        (("defend", "MODEL", "--device", "tpu"), "use auto"),
        (("defend", "MODEL", "--json", "/nowhere/x.json"), "the folder /nowhere does not exist"),
        (("evaluate", "MODEL", "--polarizer", "/nowhere"), "There is no folder /nowhere"),
        (("evaluate", "MODEL", "--images", "0"), "--images: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tiny_zoo, words, says):
    assert says in refused(capsys, *(tiny_zoo if word == "MODEL" else word for word in words))


def test_absent_data_is_one_line(capsys, tiny_zoo, tiny_zoo_folder, tmp_path, monkeypatch):
    other = tmp_path / "zoo" / "cifar10-badnets_a2o-preact_resnet18-w4"
    other.mkdir(parents=True)
    source = tiny_zoo_folder / tiny_zoo
    card = json.loads((source / "card.json").read_text()) | {"id": other.name, "dataset": "cifar10"}
    (other / "card.json").write_text(json.dumps(card))
    (other / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    monkeypatch.setenv("NPD_ZOO_DIR", str(other.parent))
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path / "empty"))
    for command in ("defend", "evaluate"):
        line = refused(capsys, command, other.name)
        assert "npd data get cifar10" in line
        assert str(tmp_path / "empty") in line


def test_tampered_weights_are_refused(capsys, tiny_zoo, tiny_zoo_folder, tmp_path, monkeypatch):
    spoil(tmp_path / tiny_zoo, tiny_zoo_folder / tiny_zoo)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    assert "sha256" in refused(capsys, "evaluate", tiny_zoo)


def test_a_tampered_polarizer_is_refused(capsys, tiny_zoo, saved):
    folder = saved[0]
    path = folder / "polarizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "changed since it was saved" in refused(capsys, "evaluate", tiny_zoo, "--polarizer", folder)


# what is left on disk


def test_a_folder_with_other_things_is_not_overwritten(capsys, tiny_zoo, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds something else" in refused(capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_saved_run_is_replaced_as_a_whole(tmp_path):
    old = tmp_path / "run"
    old.mkdir()
    (old / "result.json").write_text("{}")
    (old / "leftover").touch()
    with cli._staged(old) as stage:
        (stage / "result.json").write_text("{1}")
        assert (old / "leftover").exists()
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(old) == ["result.json"]


def test_a_folder_that_cannot_be_made_is_one_line(capsys, tiny_zoo, tmp_path):
    (tmp_path / "file").touch()
    assert "Cannot write in" in refused(capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path / "file" / "run")


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def break_off() -> None:
        with cli._staged(tmp_path / "run") as stage:
            (stage / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert os.listdir(tmp_path) == []


def test_ctrl_c_exits_130_and_leaves_nothing(tiny_zoo, tmp_path):
    words = [tiny_zoo, "--epochs", "100000", "--clean", "24", "--batch-size", "12", "--cache"]
    command = [sys.executable, "-m", "npd_core", "defend", *words]
    with subprocess.Popen(
        [*command, "--save", str(tmp_path / "run"), "--json", str(tmp_path / "numbers.json")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # the first epoch is done
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "warm-up" in first
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "npd: interrupted; nothing was left half-written."
    assert os.listdir(tmp_path) == []


# how it starts


def test_listing_the_models_imports_no_torch():
    code = (
        "import sys; from npd_core.cli import main; main(['models']); main(['data']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m npd_core data list --json - | true"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
