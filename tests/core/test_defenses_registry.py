"""A defense from outside the project runs like those of the project."""

import json
import sys

import pytest

from npd_core.cli import main as cli
from npd_core.config.npd import NPDConfig
from npd_core.defenses import CONFIGS, DEFENSES, DefenseConfig, get_defense, register, unregister
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.plugins import VARIABLE, load_plugins

PLUGIN = """
from dataclasses import dataclass
from npd_core.defenses import DefenseConfig, register
from npd_core.events import Finished, Started

@dataclass(frozen=True, kw_only=True)
class ShrinkConfig(DefenseConfig):
    factor: float = 0.5

def shrink(net, clean, cfg, device):
    net.net.linear.bias.mul_(0).add_(cfg.factor)
    return [Started(0, 0, 1, clean.size, str(device)), Finished(-1, 0.0, details={"factor": cfg.factor})]

register("shrink", ShrinkConfig, shrink, "Shrink the last layer")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "shrinking.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, " shrinking ,")
    yield
    sys.modules.pop("shrinking", None)
    if "shrink" in DEFENSES:
        unregister("shrink")


def test_a_plugin_is_run_saved_and_listed_by_the_command_line(plugin, tiny_zoo, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--set", "factor=0.25", "--clean", "24", "--save", str(out), "--device", "cpu"]
    assert cli.main(["defend", tiny_zoo, "--defense", "shrink", *words]) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["defense"], result["details"]) == ("shrink", {"factor": 0.25})
    assert (out / "model.safetensors").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["defend", "--help"])
    assert "settings of shrink (Shrink the last layer)" in " ".join(capsys.readouterr().out.split())


def test_a_plugin_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "not_a_module_of_anyone")
    with pytest.raises(ConfigError, match=r"NPD_PLUGINS.*'not_a_module_of_anyone'"):
        load_plugins()


@pytest.mark.parametrize(
    ("name", "config"),
    [("fp", DefenseConfig), ("npd", DefenseConfig), ("No name", DefenseConfig), ("mine", NPDConfig)],
)
def test_a_row_that_cannot_be_added_is_refused(name, config):
    before = dict(DEFENSES), dict(CONFIGS)
    with pytest.raises(ConfigError, match=r"`(name|config)`"):
        register(name, config, "a:b", "Mine")
    assert before == (DEFENSES, CONFIGS)


def test_a_row_that_is_taken_out_is_gone():
    register("mine", DefenseConfig, "a:b", "Mine")
    unregister("mine")
    assert "mine" not in CONFIGS
    with pytest.raises(UnknownNameError, match="'mine'"):
        get_defense("mine")
