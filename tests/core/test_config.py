"""Configs and requests: what they refuse, what survives a round trip, what makes two requests the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from npd_core import defenses
from npd_core.config.baselines import FPConfig, NCConfig
from npd_core.config.npd import VARIANTS, NPDConfig, Variant, get_variant
from npd_core.config.presets import baseline_config, defense_config, preset
from npd_core.config.request import REMOVED, DefenseRequest
from npd_core.defenses import CONFIGS
from npd_core.errors import ConfigError, UnknownNameError

PAPER = preset("cifar10", "paper")
NAN, INF = float("nan"), float("inf")


def test_the_paper_s_settings():
    """Sec. 4.1: lambda 1, 0.4, 0.4, rho 3, lr 0.01, batch 128, 2 inner steps."""
    assert (PAPER.lambda1, PAPER.lambda2, PAPER.lambda3, PAPER.lambda4) == (
        1.0,
        0.4,
        0.4,
        None,
    )
    paper = (PAPER.rho, PAPER.norm, PAPER.lr, PAPER.batch_size, PAPER.inner_steps)
    assert paper == (3.0, "l2", 0.01, 128, 2)


def test_the_budget_grows_with_the_image():
    assert preset("cifar10").rho == 3.0
    assert preset("tiny_imagenet").rho == 6.0


def test_the_fourth_weight_follows_the_third_unless_given():
    assert NPDConfig(lambda3=0.7).weights == {"bn": 1.0, "asr": 0.4, "bce1": 0.7, "bce2": 0.7}
    assert NPDConfig(lambda3=0.7, lambda4=0.0).weights["bce2"] == 0.0


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PAPER.rho = 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            (name, value)
            for name in ("lambda1", "lambda2", "lambda3", "lambda4")
            for value in (-0.1, NAN, INF, "1", True)
        ],
        *[(name, value) for name in ("rho", "lr", "inner_lr") for value in (0, -1.0, NAN, INF, None)],
        *[
            (name, value)
            for name in ("epochs", "epoch_steps", "batch_size", "inner_steps")
            for value in (0, -1, 1.5, "3", True)
        ],
        ("warmup_epochs", -1),
        ("batch_size", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("early_stop", 1.1),
        ("holdout", 0.6),
        ("clip_grad", 0),
        ("weight_decay", -1e-9),
    ],
)
def test_a_value_out_of_range_is_named_with_its_rule(name, value):
    with pytest.raises(
        ConfigError, match=rf"^`{name}` must be .*got|^`{name}` must be (at most|below) "
    ) as caught:
        NPDConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("norm", "linff", "linf"),
        ("norm", "L2", "l2"),
        ("bn_mode", "stats_folded", "stats_fold"),
        ("inner_step", "signs", "sign"),
        ("schedule", "cosin", "cosine"),
        ("precision", "bf32", "bf16|fp32"),
    ],
)
def test_an_unknown_choice_names_the_nearest(name, value, nearest):
    with pytest.raises(UnknownNameError, match=f"Unknown {name} '{value}'. Did you mean '({nearest})'"):
        NPDConfig(**{name: value})


def test_a_variant_is_a_target_and_how_many_share_a_perturbation():
    """Extension of Sec. 3, and Table 4."""
    assert {name: (v.target, v.universal) for name, v in VARIANTS.items()} == {
        "npd": ("surrogate", False),
        "npd_tu": ("known", True),
        "npd_tp": ("known", False),
        "npd_uu": ("none", True),
        "npd_up": ("none", False),
    }
    assert get_variant("npd_tp") is VARIANTS["npd_tp"]
    with pytest.raises(UnknownNameError, match=r"Unknown variant 'npd_tt'\. Did you mean 'npd_t"):
        get_variant("npd_tt")


def test_variants_that_make_no_sense_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'known'"):
        Variant("knwon", universal=False)
    with pytest.raises(ConfigError, match="one target for many images"):
        Variant("surrogate", universal=True)


def test_a_known_target_takes_the_paper_s_smaller_lambdas():
    """Sec. 4.1: 1, 0.1, 0.1 for NPD-TU and NPD-TP; the other settings of the data set stay."""
    plain = preset("signs")
    for variant in ("npd_tu", "npd_tp"):
        config = preset("signs", variant=variant)
        assert config.weights == {"bn": 1.0, "asr": 0.1, "bce1": 0.1, "bce2": 0.1}
        assert (config.epochs, config.batch_size, config.rho) == (plain.epochs, plain.batch_size, plain.rho)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name].universal])
def test_a_universal_perturbation_follows_theta(variant):
    assert preset("signs", variant=variant).attack_on == "polarized"


def test_the_bare_config_is_algorithm_1_and_presets_say_what_differs():
    assert NPDConfig().attack_on == "polarized"
    assert NPDConfig().weights == {"bn": 1.0, "asr": 0.4, "bce1": 0.4, "bce2": 0.4}
    assert preset("cifar10") == NPDConfig(
        attack_on="base", lambda2=0.05, lambda3=0.05, epochs=32, inner_steps=5, clip_grad=10.0
    )


def test_a_universal_variant_has_the_papers_inner_steps_and_takes_fewer_of_its_dear_steps():
    for variant in ("npd_tu", "npd_uu"):
        for dataset, epochs in (("cifar10", 16), ("signs", preset("signs").epochs)):
            config = preset(dataset, variant=variant)
            assert (config.inner_steps, config.epochs, config.attack_on) == (2, epochs, "polarized")
            assert config.epochs * config.epoch_steps < preset(dataset).epochs * preset(dataset).epoch_steps
    for variant in ("npd_tp", "npd_up"):
        assert preset("cifar10", variant=variant).inner_steps == preset("cifar10").inner_steps == 5


def test_a_config_survives_json():
    config = NPDConfig(lambda4=0.2, rho=1.5, norm="linf", early_stop=None, cache=False, seed=7)
    assert NPDConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'lamda2'\. Did you mean 'lambda2'"):
        NPDConfig.from_dict({"lamda2": 0.4})


@pytest.mark.parametrize("clean", [0, -3, 0.0, 1.5, -0.1, NAN, INF, "5%", True, None])
def test_clean_is_a_share_or_a_number_of_images(clean):
    with pytest.raises(ConfigError, match="`clean` must be a share"):
        DefenseRequest(model="m", clean=clean)


@pytest.mark.parametrize("clean", [1, 500, 0.05, 1.0, 1e-6])
def test_clean_amounts_that_are_fine(clean):
    assert DefenseRequest(model="m", clean=clean).clean == clean


@pytest.mark.parametrize("eval_images", [-1, 1.5, True, "all"])
def test_eval_images_is_a_number_of_images(eval_images):
    with pytest.raises(ConfigError, match="`eval_images` must be"):
        DefenseRequest(model="m", eval_images=eval_images)


REQUEST = DefenseRequest(
    model="signs-badnets_a2o-preact_resnet18-w32", layer="layer4.1.conv1", config=NPDConfig(seed=3)
)


def test_a_request_survives_json():
    again = DefenseRequest.from_dict(json.loads(json.dumps(REQUEST.to_dict())))
    assert again == REQUEST
    assert again.key == REQUEST.key


def test_every_field_of_a_request_is_part_of_its_key():
    other = {
        "model": "another",
        "defense": "npd_tu",
        "layer": None,
        "clean": 500,
        "config": replace(REQUEST.config, lambda2=0.5),
        "eval_images": 100,
        "device": "cpu",
    }
    assert set(other) == {field.name for field in fields(DefenseRequest)}
    keys = {replace(REQUEST, **{name: value}).key for name, value in other.items()} | {REQUEST.key}
    assert len(keys) == len(other) + 1


def test_a_share_of_all_images_is_not_one_image():
    assert DefenseRequest(model="m", clean=1).key != DefenseRequest(model="m", clean=1.0).key


def test_the_key_is_the_same_in_another_process():
    code = "from npd_core.config.request import DefenseRequest; print(DefenseRequest(model='m').key)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == DefenseRequest(model="m").key


STORED = {"model": "m", "defense": "npd", "layer": None, "clean": 0.05, "watch": 0, "device": "auto"}


def test_a_request_of_an_earlier_version_is_still_read():
    """Removed settings at their only value are dropped; `watch` is now `eval_images`."""
    config = {name: value for name, value in NPDConfig().to_dict().items() if name != "epoch_steps"} | REMOVED
    stored = {**STORED, "watch": 30, "config": config}
    assert DefenseRequest.from_dict(stored) == DefenseRequest(model="m", eval_images=30)


@pytest.mark.parametrize(("name", "value"), [("momentum", 0.5), ("refresh", "epoch"), ("ema", 0.9)])
def test_a_removed_setting_at_another_value_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"`{name}`"):
        DefenseRequest.from_dict({**STORED, "config": NPDConfig().to_dict() | {name: value}})


def test_other_settings_have_another_key():
    request = DefenseRequest(model="m")
    assert replace(request, config=NPDConfig(epoch_steps=2)).key != request.key
    assert replace(request, defense="npd_uu").key != request.key


def test_an_unknown_field_of_a_request_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown field 'modle'\. Did you mean 'model'"):
        DefenseRequest.from_dict({"modle": "m"})


# a baseline


def test_the_configs_are_those_of_the_table_of_defenses():
    table = defenses.DEFENSES.items()
    assert {name: row.config for name, row in table if not row.polarizes} == CONFIGS
    assert [name for name, row in table if row.polarizes] == list(VARIANTS)


@pytest.mark.parametrize("defense", CONFIGS)
def test_a_request_of_a_baseline_survives_json(defense):
    request = DefenseRequest(model="m", defense=defense, config=baseline_config(defense, "signs", seed=3))
    again = DefenseRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert type(again.config) is CONFIGS[defense]
    assert again.key == request.key
    assert replace(request, config=replace(request.config, seed=4)).key != request.key


def test_a_baseline_without_a_config_takes_its_defaults():
    assert DefenseRequest.from_dict({"model": "m", "defense": "nc"}).config == NCConfig()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"defense": "fp"}, "`config` of fp must be of the class FPConfig, got NPDConfig"),
        ({"defense": "fp", "config": NCConfig()}, "must be of the class FPConfig, got NCConfig"),
        (
            {"defense": "npd_tu", "config": FPConfig()},
            "`config` of npd_tu must be of the class NPDConfig, got FPConfig",
        ),
        (
            {"defense": "fp", "config": FPConfig(), "layer": "layer4.1.conv1"},
            "`layer` is where a polarizer is inserted",
        ),
    ],
)
def test_a_baseline_is_set_by_its_own_config_and_has_no_layer(values, says):
    with pytest.raises(ConfigError, match=says):
        DefenseRequest(model="m", **values)


@pytest.mark.parametrize(
    ("recipe", "flip", "pad"),
    [({}, False, 2), ({"flip": True, "pad": 3}, True, 3), ({"pad": 0, "epochs": 9}, False, 0)],
)
def test_a_baseline_augments_as_the_models_training_did(tiny_zoo, recipe, flip, pad):
    from npd_core.zoo import Zoo

    config = defense_config("fp", replace(Zoo().card(tiny_zoo), recipe=recipe), lr=0.5)
    assert (config.flip, config.pad, config.lr) == (flip, pad, 0.5)
    assert config.epochs == baseline_config("fp", "signs").epochs < FPConfig().epochs


SGD_01 = {"batch_size": 256, "lr": 0.01, "momentum": 0.9}
PUBLISHED = {
    "fp": SGD_01 | {"epochs": 100, "weight_decay": 5e-4, "schedule": "cosine", "tolerance": 0.1,
    "step": 0.01},
    "nad": SGD_01 | {"epochs": 10, "teacher_epochs": 10, "weight_decay": 5e-4, "p": 2, "betas": [500,
    1000, 1000]},
    "nc": SGD_01 | {"epochs": 100, "weight_decay": 5e-4, "trigger_epochs": 80, "trigger_lr": 0.1,
    "cost": 1e-3,
                    "cost_up": 2, "cost_down": 2**1.5, "success": 0.98, "patience": 5, "early_stop": 25,
                    "outlier": 2,
                    "unlearn": 0.2},
    "anp": SGD_01 | {"iterations": 2000, "eps": 0.4, "noise_steps": 1, "alpha": 0.2, "highest": 0.9,
                     "oracle_step": 0.05},
    "i_bau": {"batch_size": 256, "lr": 1e-4, "rounds": 5, "fixed_point_steps": 5, "inner_step": 0.1,
    "delta_lr": 10,
              "patched": 0.01},
    "ep": {"batch_size": 256, "u": 3, "bin_width": 0.1},
}  # fmt: skip
"""What the baselines were published and compared with on CIFAR-10."""


@pytest.mark.parametrize("defense", CONFIGS)
def test_the_defaults_of_the_baselines_are_the_published_ones(defense):
    found = CONFIGS[defense]().to_dict()
    assert {name: found[name] for name in PUBLISHED[defense]} == PUBLISHED[defense]
