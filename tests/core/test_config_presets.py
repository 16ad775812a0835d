"""Presets: `paper` and `authors` hold what methods.md 1.5 and 1.6 list, and each is recognized."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npd_core.config.npd import VARIANTS, NPDConfig
from npd_core.config.presets import PRESETS, defense_config, preset, preset_layer, recognize
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.zoo import Zoo

SHARED = {  # the same in the paper and in the authors' code, on every data set
    "lambda1": 1.0, "norm": "l2", "epochs": 50, "epoch_steps": 1, "batch_size": 128, "lr": 0.01,
    "weight_decay": 5e-4,
    "inner_steps": 2, "inner_lr": 0.1, "early_stop": 0.6, "attack_on": "polarized", "schedule": "constant",
    "clip_grad": None, "holdout": 0.0, "decay_to_identity": False, "precision": "auto", "cache": True,
    "families": "none", "copies": 1,
    "seed": 0,
}  # fmt: skip
WRITTEN = {"log_form": "exact", "bce1_label": "true"}  # rows 1 and 8 of table 1.6
CODED = {"log_form": "mart", "bce1_label": "pred"}
USUAL = {"bn_mode": "warmup_frozen", "warmup_epochs": 5, "inner_step": "sign"}
EQUAL = {"lambda2": 0.4, "lambda3": 0.4, "lambda4": None}
EXPECTED = {
    ("paper", "cifar10"): WRITTEN | USUAL | EQUAL | {"rho": 3.0},
    ("paper", "gtsrb"): WRITTEN | USUAL | EQUAL | {"rho": 3.0},
    ("paper", "tiny_imagenet"): WRITTEN | USUAL | EQUAL | {"rho": 6.0},
    ("paper", "signs"): WRITTEN | USUAL | EQUAL | {"rho": 3.0},
    ("authors", "cifar10"): CODED | USUAL | EQUAL | {"rho": 3.0},
    ("authors", "gtsrb"): CODED | USUAL | {"rho": 5.0, "lambda2": 0.5, "lambda3": 0.5, "lambda4": 0.5},
    ("authors", "tiny_imagenet"): CODED | {
        "rho": 6.0, "lambda2": 0.1, "lambda3": 1.0, "lambda4": 0.1,
        "bn_mode": "train_clean_stats", "warmup_epochs": 0, "inner_step": "raw",
    },
    ("authors", "signs"): CODED | USUAL | EQUAL | {"rho": 3.0},
}  # fmt: skip


@pytest.mark.parametrize(("name", "dataset"), EXPECTED)
def test_every_field_of_paper_and_authors_is_as_listed(name: str, dataset: str) -> None:
    assert preset(dataset, name).to_dict() == SHARED | EXPECTED[name, dataset]


@pytest.mark.parametrize("name", ["paper", "authors"])
def test_paper_and_authors_insert_the_polarizer_before_the_third_convolution_of_the_last_stage(
    name: str,
) -> None:
    assert preset_layer(name, "preact_resnet18", "signs") == "layer4.1.conv1"
    assert preset_layer(name, "vgg19_bn", "signs") == "features.46"


def test_a_variant_that_knows_the_target_has_the_papers_smaller_lambdas() -> None:
    for variant in VARIANTS:
        config = preset("cifar10", "paper", variant=variant)
        expected = 0.1 if variant in ("npd_tu", "npd_tp") else 0.4
        assert (config.lambda2, config.lambda3) == (expected, expected)


@pytest.mark.parametrize("arch", ["preact_resnet18", "vgg19_bn"])
@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_recognized_with_any_seed(name: str, arch: str) -> None:
    layer, config = preset_layer(name, arch, "signs"), replace(preset("signs", name), seed=7)
    assert recognize(layer, config, arch, "signs") == name
    assert recognize(layer, replace(config, lr=0.5), arch, "signs") is None


def test_presets_that_fail_differ_from_the_default_as_they_say() -> None:
    default = preset("signs")
    assert preset("signs", "wrong_layer") == default
    assert preset_layer("wrong_layer", "preact_resnet18", "signs") == "layer1.0.conv1"
    for name in ("too_weak", "too_strong"):
        assert preset("signs", name) == replace(default, **PRESETS[name].changes) != default
        assert preset_layer(name, "preact_resnet18", "signs") == preset_layer(
            "default", "preact_resnet18", "signs"
        )


def test_the_budget_of_uploaded_images_grows_with_their_size() -> None:
    assert preset("uploaded-0123456789abcdef", size=64).rho == 6.0
    assert preset("uploaded-0123456789abcdef", "paper", size=64).rho == 6.0
    assert preset("uploaded-0123456789abcdef", size=32).batch_size == 32


def test_a_changed_inner_step_has_a_fitting_length(tiny_zoo: str) -> None:
    card = Zoo().card(tiny_zoo)
    changed = defense_config("npd", card, inner_step="l2", rho=4.0, inner_steps=3)
    assert isinstance(changed, NPDConfig)
    assert changed.inner_lr == 2.0
    kept = defense_config("npd", card, "paper", inner_step="l2", inner_lr=0.5)
    assert (kept.to_dict()["inner_lr"], kept.to_dict()["bn_mode"]) == (0.5, "warmup_frozen")


def test_unknown_names_and_presets_of_another_defense_are_refused(tiny_zoo: str) -> None:
    with pytest.raises(UnknownNameError, match="too_weak"):
        preset("signs", "to_weak")
    with pytest.raises(UnknownNameError, match="authors"):
        preset_layer("autors", "preact_resnet18")
    with pytest.raises(UnknownNameError, match="preact_resnet18"):
        preset_layer("paper", "resnet50")
    with pytest.raises(ConfigError, match="fp"):
        defense_config("fp", Zoo().card(tiny_zoo), "paper")
