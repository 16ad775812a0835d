"""Named settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npd_core.config.npd import NPDConfig, preset
from npd_core.config.presets import SCENES, recognise, scene
from npd_core.errors import UnknownNameError


@pytest.mark.parametrize("arch", ["preact_resnet18", "vgg19_bn"])
@pytest.mark.parametrize("name", SCENES)
def test_each_scene_is_recognised_with_any_seed(name, arch):
    layer, config = scene(name, arch, "signs", seed=7)
    assert config.seed == 7
    expected = "paper" if name == "paper" else name
    assert recognise(layer, config, arch, "signs") == expected
    assert recognise(layer, replace(config, lr=0.5), arch, "signs") is None


def test_the_paper_is_algorithm_1_where_the_paper_puts_it():
    for dataset, rho in (("signs", 3.0), ("cifar10", 3.0), ("gtsrb", 3.0), ("tiny_imagenet", 6.0)):
        layer, config = scene("paper", "preact_resnet18", dataset)
        assert layer == "layer4.1.conv1"
        assert config == NPDConfig(rho=rho, bn_mode="warmup_frozen", schedule="constant")


def test_recommended_is_the_preset_and_the_others_differ_from_it_as_they_say():
    layer, config = scene("recommended", "preact_resnet18", "signs")
    assert config == preset("signs")
    assert scene("wrong_layer", "preact_resnet18", "signs") == ("layer1.0.conv1", config)
    for name in ("too_weak", "too_strong"):
        where, other = scene(name, "preact_resnet18", "signs")
        assert where == layer
        assert other == replace(config, **SCENES[name].changes)
        assert other != config


def test_an_unknown_name_is_refused():
    with pytest.raises(UnknownNameError, match="too_weak"):
        scene("to_weak", "preact_resnet18", "signs")
