"""The command line: its JSON, its exit codes, its one-line refusals, and what it leaves on disk."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npd_core.cli import main as cli
from npd_core.cli.attack import KINDS
from npd_core.cli.defend import SAVED, _saving
from npd_core.cli.interrupt import MESSAGE, UNFINISHED
from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.data.load import FILES
from npd_core.defenses import CONFIGS, DEFENSES
from npd_core.errors import ConfigError
from npd_core.events import EpochEnd, Failed, Finished, Started, StepEnd
from npd_core.names import METRICS
from npd_core.runs.store import read_record

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
    expected = {
        "id": tiny_zoo,
        "dataset": "signs",
        "attack": "badnets_a2o",
        "arch": "preact_resnet18",
        "width": 4,
    }
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


@pytest.fixture
def mixed_zoo(tiny_zoo, tiny_zoo_folder, tmp_path, monkeypatch):
    """The tiny model, a clean network, and a model whose card is damaged; returns the three ids."""
    clean, damaged = tiny_zoo.replace("badnets_a2o", "clean"), tiny_zoo.replace("badnets_a2o", "wanet")
    shutil.copytree(tiny_zoo_folder / tiny_zoo, tmp_path / "zoo" / tiny_zoo)
    shutil.copytree(tiny_zoo_folder / tiny_zoo, tmp_path / "zoo" / clean)
    path = tmp_path / "zoo" / clean / "card.json"
    changes = {
        "id": clean,
        "attack": "clean",
        "attack_params": {},
        "poison_ratio": 0,
        "asr": None,
        "ra": None,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tmp_path / "zoo" / damaged).mkdir()
    (tmp_path / "zoo" / damaged / "card.json").write_text('{"id": ')
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    return tiny_zoo, clean, damaged


def test_models_lists_clean_networks_and_complains_of_damaged_cards(capsys, mixed_zoo):
    backdoored, clean, damaged = mixed_zoo
    code, out, err = run(capsys, "models")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        [backdoored, "99.03", "100.00"],
        [clean, "99.03", "-"],
    ]
    assert err.startswith("npd: ")
    assert err.count("\n") == 1
    assert f"{damaged}/card.json: not a readable model card" in err
    code, out, _ = run(capsys, "models", "--json", "-")
    assert [(row["id"], row["asr"]) for row in json.loads(out)] == [(backdoored, 1.0), (clean, None)]


def test_a_zoo_of_damaged_cards_alone_is_not_called_empty(capsys, mixed_zoo, tmp_path):
    for name in mixed_zoo[:2]:
        shutil.rmtree(tmp_path / "zoo" / name)
    code, out, err = run(capsys, "models")
    assert (code, out) == (0, "No model of the zoo can be read.\n")
    assert "not a readable model card" in err


def test_what_needs_a_trigger_refuses_a_clean_network_and_a_damaged_card(capsys, mixed_zoo, tmp_path):
    backdoored, clean, damaged = mixed_zoo
    assert "signs-clean-preact_resnet18-w4" in refused(capsys, "attack", clean)
    assert "not a readable model card" in refused(capsys, "attack", damaged)
    shutil.rmtree(tmp_path / "zoo" / backdoored)
    assert "The zoo has no backdoored model" in refused(capsys, "bench")


def test_watching_a_clean_network_says_that_there_is_no_asr(capsys, mixed_zoo):
    code, _, err = run(capsys, "defend", mixed_zoo[1], *QUICK, "--eval-images", "60", "--device", "cpu")
    assert code == 0, err
    assert re.search(r"ACC \d+\.\d% · ASR - · RA - on 60 test images", err)


@pytest.mark.parametrize("named", [False, True])
def test_verify_counts_a_damaged_card(capsys, mixed_zoo, tmp_path, named):
    for name in mixed_zoo[:2]:
        shutil.rmtree(tmp_path / "zoo" / name)
    code, out, _ = run(capsys, "zoo", "verify", *mixed_zoo[2:] * named)
    assert code == 1
    assert f"NOT OK: {tmp_path}/zoo/{mixed_zoo[2]}/card.json: not a readable model card" in out


@pytest.mark.parametrize("words", [("data",), ("data", "list")])
def test_data_says_what_is_here_and_what_to_do_for_the_rest(capsys, tmp_path, monkeypatch, words):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    code, out, _ = run(capsys, *words)
    lines = out.splitlines()[1:]
    rows = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert code == 0
    assert list(rows) == ["signs", "cifar10", "gtsrb", "tiny_imagenet"]
    signs = ROOT / "assets" / "signs"
    assert rows["signs"].split() == ["signs", "yes", "train", str(signs / "train.parquet")]
    assert lines[1].split() == ["test", str(signs / "test.parquet")]
    assert "npd data get cifar10" in rows["cifar10"]


def test_data_as_json(capsys, real_data):
    code, out, _ = run(capsys, "data", "--json", "-")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert all(row["available"] for row in rows.values())
    here = {split for split, file in FILES.items() if (real_data / "tiny_imagenet" / file).is_file()}
    assert set(rows["tiny_imagenet"]["splits"]) == here


def test_data_that_is_here_in_part_says_where_and_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    (tmp_path / "gtsrb").mkdir()
    (tmp_path / "gtsrb" / "test.parquet").touch()
    _, out, _ = run(capsys, "data")
    at = next(k for k, line in enumerate(out.splitlines()) if line.startswith("gtsrb"))
    first, second = out.splitlines()[at : at + 2]
    assert first.split() == ["gtsrb", "no", "test", str(tmp_path / "gtsrb" / "test.parquet")]
    assert second.startswith(" ")
    assert "npd data get gtsrb" in second


@pytest.mark.parametrize(
    "name", ["models", "data", "defend", "compare", "evaluate", "attack", "zoo", "bench"]
)
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


@pytest.mark.parametrize("defense", CONFIGS)
def test_help_of_defend_shows_the_settings_of_every_baseline(capsys, defense):
    with pytest.raises(SystemExit):
        cli.main(["defend", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert defense in text.split("--defense DEFENSE")[2].split("(default: npd)")[0]
    about = text.split(f"settings of {defense} (")[1].split("settings of ")[0]
    assert all(f"{name}=" in about for name in CONFIGS[defense]().to_dict())
    assert ("--epochs" in about) == (defense in ("fp", "nad", "nc"))
    assert ("POISONED training set" in about) == (defense == "ep")


# the main job


@pytest.fixture(scope="module")
def saved_once(tiny_zoo_folder, tmp_path_factory):
    """A defense of the tiny model, run once with everything that can be asked for: folder, JSON, stdout,
    stderr."""
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
        "--eval-images",
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
    assert (value["config"]["clean"], value["config"]["eval_images"]) == (24, 60)

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
    assert METRICS["asr"].help in out


# baselines

BASELINE = ("--clean", "24", "--device", "cpu", "--batch-size", "12")


@pytest.fixture
def few(monkeypatch):
    """Numbers are measured on 120 test images."""
    import npd_core.defend
    from npd_core import evaluation

    real = evaluation.test_sets
    for module in (npd_core.defend, evaluation):
        monkeypatch.setattr(
            module, "test_sets", lambda dataset, attack, limit=120: real(dataset, attack, limit or 120)
        )


def test_a_baseline_is_saved_and_measures_the_same_again(capsys, tiny_zoo, few, tmp_path):
    words = (*BASELINE, "--epochs", "1", "--set", "tolerance=0.2", "--eval-images", "24")
    code, out, err = run(capsys, "defend", tiny_zoo, "--defense", "fp", *words, "--save", tmp_path / "run")
    assert "repaired.json" in os.listdir(tmp_path / "run")
    assert SAVED.issuperset(os.listdir(tmp_path / "run"))
    assert code == 0
    assert out.splitlines()[0] == f"{tiny_zoo} · fp"
    assert "on 24 test images" in err
    record = read_record(tmp_path / "run")
    assert (record.state, record.request.defense) == ("finished", "fp")
    asked = {"epochs": 1, "batch_size": 12, "tolerance": 0.2, "flip": False}
    assert {name: getattr(record.request.config, name) for name in asked} == asked

    code, out, _ = run(
        capsys, "evaluate", tiny_zoo, "--polarizer", tmp_path / "run", "--device", "cpu", "--json", "-"
    )
    again = json.loads(out)
    assert (code, again["defense"], again["layer"]) == (0, "fp", None)
    assert (again["before"], again["after"]) == (record.result["before"], record.result["after"])

    path = tmp_path / "run" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "changed since it was saved" in refused(
        capsys, "evaluate", tiny_zoo, "--polarizer", tmp_path / "run"
    )


@pytest.fixture
def asked(monkeypatch, saved_once):
    """Requests that would have been run."""
    import npd_core.defend

    requests = []

    def run_defense(request, out=None, stop=None, *, before=None):
        requests.append(request)
        if request.defense == "nad":
            raise ConfigError("NAD needs more.")
        if request.defense == "nc":
            yield Failed("the loss became NaN.", -1, 0.5, result={**saved_once[1], "defense": "nc"})
        else:
            details = {"batch": "mixture"} if request.defense == "ep" else {}
            yield Finished(0, 0.5, result={**saved_once[1], "defense": request.defense, "details": details})

    monkeypatch.setattr(npd_core.defend, "run_defense", run_defense)
    return requests


@pytest.mark.parametrize(
    ("defense", "words", "config"),
    [
        ("fp", ("--lr", "0.5", "--seed", "7"), {"lr": 0.5, "seed": 7, "epochs": 30}),
        ("nc", ("--set", "classes=0,2,5", "--set", "trigger_betas=0.1,0.2"), {"classes": (0, 2, 5)}),
        (
            "nc",
            (
                "--set",
                "classes=none",
            ),
            {"classes": None, "trigger_betas": (0.5, 0.9)},
        ),
        ("nad", ("--set", "betas=1,2,3.5", "--set", "flip=true"), {"betas": (1.0, 2.0, 3.5), "flip": True}),
        (
            "anp",
            ("--set", "select=fixed", "--set", "iterations=5"),
            {"select": "fixed", "iterations": 5, "lr": 0.02},
        ),
        ("i_bau", ("--set", "lr=1e-3", "--precision", "fp32"), {"lr": 1e-3, "precision": "fp32"}),
        (
            "ep",
            (
                "--set",
                "u=2",
            ),
            {"u": 2.0, "batch": "mixture"},
        ),
        ("npd", ("--set", "early_stop=none", "--set", "cache=false"), {"early_stop": None, "cache": False}),
    ],
)
def test_settings_reach_the_config(capsys, tiny_zoo, asked, defense, words, config):
    run(capsys, "defend", tiny_zoo, "--defense", defense, *words)
    (request,) = asked
    assert request.defense == defense
    assert {name: getattr(request.config, name) for name in config} == config
    assert all(type(getattr(request.config, name)) is type(value) for name, value in config.items())


def test_ep_says_what_it_saw(capsys, tiny_zoo, asked):
    code, out, _ = run(capsys, "defend", tiny_zoo, "--defense", "ep")
    assert code == 0
    assert "--set batch=clean" in out


def test_compare_runs_each_and_one_that_fails_does_not_end_the_others(capsys, tiny_zoo, asked, saved_once):
    names = ["nad", "fp", "nc", "npd_tp"]
    words = ("compare", tiny_zoo, "--defenses", ",".join(names), "--clean", "24", "--seed", "5")
    code, out, err = run(capsys, *words, "--json", "-")
    value = json.loads(out)
    assert code == 1
    assert set(value) == {"model", "before", "defenses", "environment"}
    assert [row["defense"] for row in value["defenses"]] == names
    failed = {row["defense"]: row["failed"] for row in value["defenses"] if "failed" in row}
    assert failed == {"nad": "NAD needs more.", "nc": "the loss became NaN."}
    assert value["before"] == pytest.approx({"acc": 0.990278, "asr": 1.0, "ra": 0.0}, abs=2e-3)
    assert value["defenses"][1]["after"] == saved_once[1]["after"]
    assert err.splitlines() == [
        "nad: NAD needs more.",
        "fp: done",
        "nc: the loss became NaN.",
        "npd_tp: done",
    ]
    assert [(r.defense, r.config.seed, r.clean) for r in asked] == [(name, 5, 24) for name in names]
    assert asked[3].config.lambda2 == 0.1, "the preset of the variant"

    code, out, _ = run(capsys, *words)
    lines = out.splitlines()
    assert code == 1
    assert lines[0] == tiny_zoo
    assert lines[1].split() == ["ACC", "%", "ASR", "%", "RA", "%", "DER", "%", "seconds"]
    assert [line.split()[0] for line in lines[2:7]] == ["before", *names]
    assert lines[3].split() == ["nad", *"-----"]
    after = saved_once[1]["after"]
    assert lines[4].split()[1:4] == [f"{100 * after[name]:.2f}" for name in ("acc", "asr", "ra")]
    assert lines[7:] == ["nad failed: NAD needs more.", "nc failed: the loss became NaN."]


def test_compare_of_all_takes_every_defense_once(capsys, tiny_zoo, few, asked):
    run(capsys, "compare", tiny_zoo)
    assert [request.defense for request in asked] == [*VARIANTS, *CONFIGS] == list(DEFENSES)
    asked.clear()
    run(capsys, "compare", tiny_zoo, "--defenses", "fp,npd,fp")
    assert [request.defense for request in asked] == ["fp", "npd"]


def test_compare_measures_what_a_run_measures(capsys, tiny_zoo, few):
    code, out, _ = run(
        capsys, "compare", tiny_zoo, "--defenses", "ep", "--clean", "24", "--device", "cpu", "--json", "-"
    )
    (row,) = json.loads(out)["defenses"]
    assert code == 0
    assert row["before"] == json.loads(out)["before"]
    assert {"model", "defense", "after", "der", "seconds", "config", "details", "environment"} <= set(row)
    assert "clean_indices" not in row


# pictures of an attack


def picture(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def test_attack_writes_clean_poisoned_and_ten_times_the_difference(capsys, tmp_path):
    out = tmp_path / "pictures"
    words = ("attack", "blended", "--dataset", "signs", "--out", out)
    code, text, err = run(capsys, *words, "--images", "2", "--json", "-")
    value = json.loads(text)
    assert (code, err) == (0, "")
    assert (value["attack"], value["dataset"], value["model"], value["folder"]) == (
        "blended",
        "signs",
        None,
        str(out),
    )
    assert len(value["images"]) == 2
    assert sorted(os.listdir(out)) == sorted(row[kind] for row in value["images"] for kind in KINDS)
    for row in value["images"]:
        clean, poisoned, difference = (picture(out / row[kind]) for kind in KINDS)
        assert clean.shape == (32, 32, 3)
        assert (difference == np.clip(128 + 10 * (poisoned - clean), 0, 255)).all()
        assert row["largest_change"] == abs(poisoned - clean).max() > 0
        assert row["target"] == "speed limit 80"

    assert run(capsys, *words, "--images", "1")[0] == 0  # pictures are replaced
    assert len(os.listdir(out)) == 3
    assert os.listdir(tmp_path) == ["pictures"]


def test_attack_of_a_model_uses_the_models_own_trigger(capsys, tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run(capsys, "attack", tiny_zoo, "--images", "3")
    assert code == 0
    assert text.splitlines()[0].split()[0] == "image"
    assert text.splitlines()[-1] == f"Images in {tmp_path / f'attack-{tiny_zoo}'}"
    (folder,) = tmp_path.iterdir()
    stamped = list(folder.glob("*-triggered.png"))
    assert len(stamped) == 3
    assert all((picture(path)[-3:, -3:] == 255).all() for path in stamped)


def test_a_disk_full_of_pictures_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    line = refused(capsys, "attack", "blended", "--out", tmp_path / "pictures")
    assert "No space left on device" in line
    assert "--out" in line
    assert os.listdir(tmp_path) == []


def test_attack_refuses_what_it_cannot_show(capsys, tiny_zoo, tmp_path):
    assert "Did you mean 'blended'" in refused(capsys, "attack", "blendd")
    assert "npd zoo train signs-trojan-" in refused(capsys, "attack", "trojan")
    assert "Unknown data set 'cifar'" in refused(capsys, "attack", "wanet", "--dataset", "cifar")
    assert "is a model of signs, not of gtsrb" in refused(capsys, "attack", tiny_zoo, "--dataset", "gtsrb")
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds other files" in refused(capsys, "attack", "blended", "--out", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "result.json").write_text("{}")
    assert "holds other files" in refused(capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["result.json", "thesis.tex"]


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


def test_zoo_verify_without_the_images_hashes_the_files_and_says_so(capsys, tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("npd_core.paths.assets", lambda: tmp_path)
    code, out, _ = run(capsys, "zoo", "verify", tiny_zoo)
    assert code == 2
    assert "files ok, not measured" in out
    assert "NOT OK" not in out


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
    code, out, err = run(
        capsys, "zoo", "train", tiny_zoo, "--epochs", "2", "--seed", "3", "--poison-ratio", "0.05"
    )
    assert code == 0
    given = {"poison_ratio": 0.05, "epochs": 2, "seed": 3, "longer": None}
    assert asked == {"model": tiny_zoo, "device": "auto"} | given
    assert f"{tiny_zoo}: ACC 99.03 % · ASR 100.00 % · RA 0.00 % · trained in" in out
    assert err == "epoch 1/2 · loss 0.500 · 1.0 s\n"

    card |= {"asr": None, "ra": None, "cross_acc": 0.5}
    _, out, _ = run(capsys, "zoo", "train", tiny_zoo, "--longer", "4")
    assert f"{tiny_zoo}: ACC 99.03 % · cross ACC 50.00 % · trained in" in out
    assert asked == {"model": tiny_zoo, "device": "auto"} | dict.fromkeys(given) | {"longer": 4}


def test_the_paper_preset_trains_what_the_zoo_lacks_and_can_be_left_and_gone_on_with(
    capsys, tmp_path, monkeypatch
):
    import torch

    import npd_core.data.load as load
    import npd_core.zoo.train as train
    from npd_core import evaluation
    from npd_core.data.load import Availability, ImageSet
    from npd_core.zoo import Zoo

    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path / "zoo"))
    monkeypatch.setenv("NPD_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    few = ImageSet(torch.randint(0, 255, (300, 3, 32, 32), dtype=torch.uint8), torch.arange(300) % 10)
    for module in (train, evaluation):
        monkeypatch.setattr(module, "load_dataset", lambda *_: few)
    splits = {"cifar10": {"train": "here", "test": "here"}, "gtsrb": {"test": "here"}}
    monkeypatch.setattr(load, "availability", lambda name: Availability(name, True, splits[name]))

    words = (
        "zoo",
        "train",
        "--preset",
        "paper",
        "--width",
        "4",
        "--attacks",
        "badnets_a2o,blended",
        "--epochs",
        "1",
    )
    expected = [
        f"cifar10-{a}-{arch}-w4"
        for arch in ("preact_resnet18", "vgg19_bn")
        for a in ("badnets_a2o", "blended")
    ]
    real = train.train_model

    def breaks_off(model, **settings):
        if model == expected[1]:
            raise KeyboardInterrupt
        return real(model, **settings)

    monkeypatch.setattr(train, "train_model", breaks_off)
    assert run(capsys, *words)[0] == 130
    assert os.listdir(tmp_path / "zoo") == expected[:1]

    monkeypatch.setattr(train, "train_model", real)
    code, out, err = run(capsys, *words, "--json", "-")
    assert code == 0, err
    assert [card["id"] for card in json.loads(out)] == expected
    assert f"{expected[0]} is in the zoo already" in err
    assert "npd: gtsrb-blended-preact_resnet18-w4 is left out: the images of gtsrb are not all here" in err
    assert all(Zoo().card(model).poison_ratio == 0.1 for model in expected)
    assert os.listdir(tmp_path / "checkpoints") == []

    assert "holds this model at a poison ratio of 0.1" in run(capsys, *words, "--poison-ratio", "0.2")[2]
    splits["cifar10"].clear()
    assert "images of no model of the preset" in run(capsys, *words)[2]


# speed


def test_bench_as_json(capsys, tiny_zoo):
    code, out, _ = run(
        capsys, "bench", "--layer", "layer4.1.conv1", "--clean", "24", "--device", "cpu", "--json", "-"
    )
    report = json.loads(out)
    (row,) = report["results"]
    assert code == 0
    assert (row["model"], row["layer"]) == (tiny_zoo, "layer4.1.conv1")
    assert 0.5 < row["forward_equivalents_per_step"] <= 5.6 < row["forward_equivalents_first_epoch"]
    assert all(
        row[name] > 0 for name in ("train_images_per_second", "eval_images_per_second", "seconds_per_epoch")
    )
    assert report["environment"]["device"] == "cpu"


def test_a_step_of_algorithm_1_costs_less_than_its_six_passes(capsys, tiny_zoo):
    words = (
        "--layer",
        "layer4.1.conv1",
        "--clean",
        "24",
        "--device",
        "cpu",
        "--attack-on",
        "polarized",
        "--json",
        "-",
    )
    row = json.loads(run(capsys, "bench", *words)[1])["results"][0]
    assert row["attack_on"] == "polarized"
    assert 1 < row["forward_equivalents_per_step"] == row["forward_equivalents_first_epoch"] <= 5.6


# what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "required: COMMAND"),
        (("defned",), "Unknown command 'defned'. Did you mean 'defend'?"),
        (("swept", "x"), "Unknown command 'swept'. Did you mean 'sweep'?"),
        (("data", "gett"), "Unknown command 'gett'. Did you mean 'get'?"),
        (("data", "get", "cifar"), "Unknown data set 'cifar'. Did you mean 'cifar10'?"),
        (("zoo",), "required: ACTION"),
        (
            ("zoo", "train", "signs-badnets-preact_resnet18-w8"),
            "Unknown attack 'badnets'. Did you mean 'badnets_a2o'?",
        ),
        (("zoo", "train", "resnet"), "is not a model id"),
        (("zoo", "train"), "Name one model to train, or --preset paper"),
        (("zoo", "train", "MODEL", "--preset", "paper"), "Name one model to train, or --preset paper"),
        (("zoo", "train", "--preset", "paper", "--longer", "2"), "--longer goes with the id of a model."),
        (
            ("zoo", "train", "signs-wanet-vgg19_bn-w3", "--longer", "2"),
            "Only a model of the zoo can be trained longer",
        ),
        (("zoo", "train", "MODEL", "--longer", "0"), "--longer"),
        (("zoo", "train", "--preset", "demo"), "Unknown --preset 'demo'"),
        (("zoo", "train", "--preset", "paper", "--attacks", "blend"), "Did you mean 'blended'"),
        (("zoo", "train", "MODEL", "--width", "4"), "--width and --attacks go with --preset"),
        (("zoo", "train", "MODEL", "--poison-ratio", "0.3"), "holds this model at a poison ratio of 0.2"),
        (("zoo", "verify", "nobody"), "Unknown model 'nobody'."),
        (("defend",), "required: MODEL"),
        (("defend", "MODEL", "more"), "does not take 'more'"),
        (("defend", "MODEL", "--lamda2", "0.4"), "Unknown option '--lamda2'. Did you mean '--lambda2'?"),
        (
            ("defend", "signs-badnet-preact_resnet18-w4"),
            "Did you mean 'signs-badnets_a2o-preact_resnet18-w4'?",
        ),
        (("defend", "MODEL", "--layer", "layr4.1.conv1"), "Did you mean 'layer4.1.conv1'?"),
        (("defend", "MODEL", "--layer", "features.3"), "Unknown layer 'features.3'."),
        (("defend", "MODEL", "--defense", "npdd"), "Unknown defense 'npdd'. Did you mean 'npd'?"),
        (("defend", "MODEL", "--defense", "npp"), "Unknown defense 'npp'."),
        (("defend", "MODEL", "--defense", "ibau"), "Did you mean 'i_bau'?"),
        (
            ("defend", "MODEL", "--defense", "fp", "--rho", "2"),
            "--rho is an option of NPD and does not go with fp",
        ),
        (
            ("defend", "MODEL", "--defense", "ep", "--epochs", "2"),
            "--epochs is an option of NPD and does not go with ep",
        ),
        (("defend", "MODEL", "--defense", "nad", "--weight-decay", "0.5"), "--set weight_decay=VALUE"),
        (
            ("defend", "MODEL", "--defense", "nc", "--no-cache"),
            "--cache is an option of NPD and does not go with nc",
        ),
        (("defend", "MODEL", "--defense", "anp", "--layer", "conv1"), "--layer does not go with anp"),
        (
            ("defend", "MODEL", "--defense", "fp", "--set", "tolerence=0.1"),
            "of fp 'tolerence'. Did you mean 'tolerance'?",
        ),
        (
            ("defend", "MODEL", "--defense", "fp", "--set", "tolerance"),
            "--set: write NAME=VALUE, got 'tolerance'",
        ),
        (
            ("defend", "MODEL", "--defense", "fp", "--set", "tolerance=2"),
            "`tolerance` must be a number in [0, 1], got 2",
        ),
        (("defend", "MODEL", "--defense", "fp", "--set", "flip=maybe"), "--set flip: must be true or false"),
        (
            ("defend", "MODEL", "--defense", "nc", "--set", "classes=0,x,2"),
            "--set classes: must be a whole number",
        ),
        (
            ("defend", "MODEL", "--defense", "ep", "--set", "batch=cleen"),
            "Unknown batch 'cleen'. Did you mean 'clean'?",
        ),
        (("defend", "MODEL", "--defense", "fp", "--lr", "1", "--set", "lr=2"), "`lr` was given twice"),
        (("compare", "MODEL", "--defenses", "fp,npdd"), "Unknown defense 'npdd'. Did you mean 'npd'?"),
        (("compare", "MODEL", "--defenses", ""), "Unknown defense ''."),
        (("compare", "nobody"), "Unknown model 'nobody'."),
        (("compare", "MODEL", "--clean", "0"), "`clean` must be"),
        (("compare", "MODEL", "--clean", "9999999"), "9999999"),
        (("compare", "MODEL", "--seed", "-1"), "`seed` must be"),
        (("defend", "MODEL", "--lambda2", "-0.4"), "`lambda2` must be a number of at least 0, got -0.4"),
        (("defend", "MODEL", "--lambda2", "nan"), "`lambda2` must be a number of at least 0, got nan"),
        (("defend", "MODEL", "--lambda2", "much"), "--lambda2: must be a number, got 'much'"),
        (("defend", "MODEL", "--lambda2"), "--lambda2: expected one argument"),
        (("defend", "MODEL", "--rho", "0"), "`rho` must be a number above 0, got 0"),
        (("defend", "MODEL", "--norm", "l3"), "Unknown --norm 'l3'. Did you mean 'l"),
        (("defend", "MODEL", "--epochs", "0"), "`epochs` must be a whole number of at least 1, got 0"),
        (("defend", "MODEL", "--epochs", "2.5"), "--epochs: must be a whole number, got '2.5'"),
        (
            ("defend", "MODEL", "--clean", "0"),
            "`clean` must be a share in (0, 1] or a whole number of images, got 0",
        ),
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


def test_what_is_saved_may_be_replaced(saved):
    assert {"polarizer.safetensors", "result.json"} < set(os.listdir(saved[0])) <= SAVED


def test_a_tampered_polarizer_is_refused(capsys, tiny_zoo, saved):
    folder = saved[0]
    path = folder / "polarizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "changed since it was saved" in refused(capsys, "evaluate", tiny_zoo, "--polarizer", folder)


# what is left on disk


def test_a_seed_that_no_generator_takes_is_refused(capsys, tiny_zoo):
    assert "`seed` must be a whole number" in refused(capsys, "defend", tiny_zoo, "--seed", 2**64)
    assert "`seed` must be a whole number" in refused(
        capsys, "zoo", "train", "signs-badnets_a2o-vgg19_bn-w4", "--seed", -1
    )


def test_a_folder_with_other_things_is_not_overwritten(capsys, tiny_zoo, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds other files" in refused(capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "result.json").write_text("{}")
    assert "holds other files" in refused(capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["result.json", "thesis.tex"]


def test_a_saved_run_is_replaced_as_a_whole(tmp_path):
    old = tmp_path / "run"
    old.mkdir()
    (old / "result.json").write_text("{}")
    (old / "events.jsonl").touch()
    with _saving(old) as stage:
        (stage / "result.json").write_text("{1}")
        assert (old / "events.jsonl").exists()
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(old) == ["result.json"]


def test_a_folder_that_cannot_be_made_is_one_line(capsys, tiny_zoo, tmp_path):
    (tmp_path / "file").touch()
    assert "Cannot write in" in refused(
        capsys, "defend", tiny_zoo, *QUICK, "--save", tmp_path / "file" / "run"
    )


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def break_off() -> None:
        with _saving(tmp_path / "run") as stage:
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


WRITERS = {
    "bytes": "from npd_core.fileio import write_bytes; write_bytes(folder / 'x.zip', b'x')",
    "json": "from npd_core.fileio import write_json; write_json(folder / 'x.json', 1)",
    "unpacking": """
from npd_core.data import download
with download.tarfile.open(folder / 'a.tar', 'w') as tar:
    tar.add(cli.__file__, 'inside/file')
(folder / 'a.tar').rename(folder / 'kept.part')
download._unpack(folder / 'kept.part', folder, 'inside')""",
    "checkpoint": """
import torch
from npd_core.models import build_model
from npd_core.zoo.checkpoint import Checkpoint
from npd_core.zoo.recipe import Recipe
net = build_model('preact_resnet18', 3, 4)
sgd = torch.optim.SGD(net.parameters(), 0.1)
Checkpoint(folder / 'x.pt', net, sgd, Recipe(), {}, None).save(1, 1.0)""",
    "a training that waits": """
def steps():
    (folder / 'half').touch()
    try:
        yield 1
    finally:
        (folder / 'half').unlink()
for step in steps():
    hang()""",
}
"""What writes to `folder`, in the middle of which it hangs."""

HANGING = """
import os, pathlib, sys, time
from npd_core.cli import interrupt, models
from npd_core.cli import main as cli
from npd_core.cli.interrupt import replacing
folder = pathlib.Path(sys.argv[1])
def hang(*_):
    print('writing', file=sys.stderr, flush=True)
    time.sleep(60)
def command(args):
    os.replace = pathlib.Path.replace = hang
    exec(BODY)
models.run = command
sys.argv = ['npd', 'models']
sys.exit(cli.main())
"""


def interrupted(
    code: str, *words: str, number: signal.Signals = signal.SIGINT, times: int = 1
) -> tuple[int, list[str]]:
    """Exit code and stderr of a program that is told to end when it has said its first line."""
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        for _ in range(times):
            time.sleep(0.1)
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
    return process.returncode, [first.strip(), *err.splitlines()]


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_leaves_half_a_file_behind(tmp_path, writer):
    code, said = interrupted(f"BODY = {WRITERS[writer]!r}\n{HANGING}", str(tmp_path))
    assert (code, said) == (130, ["writing", f"npd: {MESSAGE}"])
    kept = ["kept.part"] if writer == "unpacking" else []
    assert os.listdir(tmp_path) == kept


def test_terminate_does_the_same_and_exits_143(tmp_path):
    code, said = interrupted(f"BODY = {WRITERS['json']!r}\n{HANGING}", str(tmp_path), number=signal.SIGTERM)
    assert (code, said) == (143, ["writing", f"npd: {MESSAGE}"])
    assert os.listdir(tmp_path) == []


def test_within_an_import_it_ends_at_once_with_its_folder_removed(tmp_path):
    (tmp_path / "slow_module.py").write_text("hang()")
    body = """
import builtins
builtins.hang = hang
sys.path.insert(0, str(folder))
with replacing(folder / 'run'):
    try:
        import slow_module
    except KeyboardInterrupt:
        pass  # as imports of other people's code may"""
    assert interrupted(f"BODY = {body!r}\n{HANGING}", str(tmp_path))[0] == 130
    assert sorted(path.name for path in tmp_path.glob("*") if path.name != "__pycache__") == [
        "slow_module.py"
    ]


@pytest.mark.parametrize(("patience", "times"), [("0.5", 1), ("60", 2)])
def test_a_way_out_that_never_ends_is_cut_short_by_patience_or_a_second_signal(tmp_path, patience, times):
    body = f"""
interrupt.PATIENCE = {patience}
try:
    hang()
finally:
    time.sleep(60)"""
    code, said = interrupted(f"BODY = {body!r}\n{HANGING}", str(tmp_path), times=times)
    assert (code, said) == (130, ["writing", f"npd: {UNFINISHED}"])


# how it starts


def test_listing_the_models_imports_no_torch():
    code = (
        "import sys; from npd_core.cli.main import main; main(['models']); main(['data']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m npd_core data list --json - | true"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
