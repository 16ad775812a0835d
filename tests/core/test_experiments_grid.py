"""Grids: what is combined with what, and the points of Figure 3."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npd_core.config.presets import defense_config, preset
from npd_core.errors import ConfigError, UnknownNameError
from npd_core.experiments.grid import Grid, layer_names, main_path, requests
from npd_core.zoo import Zoo

# The 17 convolutions of the main path, in the order of the forward pass
MAIN = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2))]


def test_the_points_of_figure_3_are_those_after_the_17_convolutions():
    assert main_path("preact_resnet18") == [f"after:{name}" for name in MAIN]


def test_a_plain_network_has_all_its_convolutions_on_the_main_path():
    assert len(main_path("vgg19_bn")) == 16


def test_every_combination_once(tiny_zoo):
    grid = Grid(
        model=tiny_zoo,
        defenses=("npd", "npd_up"),
        layers=("layer4.1.conv1", "conv1"),
        clean=(24, 0.05),
        settings={"lambda2": (0.0, 0.4), "rho": (1.0, 3.0, 6.0)},
        seeds=(0, 1),
    )
    found = requests(grid)
    assert len(found) == 2 * 2 * 2 * 2 * 3 * 2
    assert len({request.key for request in found}) == len(found)
    seen = {(r.defense, r.layer, r.clean, r.config.lambda2, r.config.rho, r.config.seed) for r in found}
    assert ("npd_up", "conv1", 24, 0.4, 6.0, 1) in seen
    others = {
        name: value for name, value in found[0].config.to_dict().items() if name not in ("lambda2", "rho")
    }
    expected = preset("signs").to_dict()
    assert others == {name: expected[name] for name in others}


def test_a_baseline_is_run_once_for_each_subset_and_seed(tiny_zoo):
    grid = Grid(
        model=tiny_zoo,
        defenses=("npd", "ep"),
        layers=("main",),
        clean=(24, 48),
        settings={"lambda2": (0.0, 0.1)},
    )
    found = requests(grid)
    assert sum(request.defense == "npd" for request in found) == 17 * 2 * 2
    assert [(r.clean, r.layer) for r in found if r.defense == "ep"] == [(24, None), (48, None)]


def test_the_default_point_by_its_name_is_the_default_point(tiny_zoo):
    (named,) = requests(Grid(model=tiny_zoo, layers=("stream:layer3.1",)))
    (default,) = requests(Grid(model=tiny_zoo))
    assert named.key == default.key
    assert named.layer is None


def test_all_layers_are_every_insertion_layer(tiny_zoo):
    names = layer_names(Zoo().card(tiny_zoo), ("all", "before:conv1"))
    assert len(names) == 2 * 20 + 8  # before and after 20 convolutions, and 8 streams; conv1 is there already
    assert names[0] == "conv1"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"defenses": ("nqd",)}, UnknownNameError, "Did you mean 'npd'"),
        ({"layers": ("layer4.1.conv9",)}, UnknownNameError, "layer4.1.conv"),
        ({"settings": {"lamda2": (1.0,)}}, UnknownNameError, "lambda2"),
        ({"settings": {"rho": (-1.0,)}}, ConfigError, "`rho`"),
        ({"defenses": ("fp",), "settings": {"rho": (1.0,)}}, ConfigError, "`rho`.*add npd"),
        ({"defenses": ("fp",), "layers": ("conv1",)}, ConfigError, "`layers`.*add npd"),
        ({"clean": (0,)}, ConfigError, "`clean`"),
        ({"model": "signs-none"}, UnknownNameError, "signs-badnets_a2o"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny_zoo, changes, error, said):
    with pytest.raises(error, match=said):
        requests(Grid(**{"model": tiny_zoo} | changes))


def test_a_textbook_step_is_a_share_of_the_budget(tiny_zoo):
    card = Zoo().card(tiny_zoo)
    config = defense_config("npd", card, inner_step="l2", rho=4.0, inner_steps=3)
    assert config.inner_lr == pytest.approx(1.5 * 4.0 / 3)
    assert defense_config("npd", card, inner_step="l2", inner_lr=0.3).inner_lr == 0.3
    assert defense_config("npd", card).inner_lr == 0.1


def test_the_budget_of_uploaded_images_grows_with_their_size(tiny_zoo):
    card = replace(Zoo().card(tiny_zoo), dataset="own-1", image_size=64)
    assert (defense_config("npd", card).rho, defense_config("npd", card).attack_on) == (6.0, "base")
    assert defense_config("npd", replace(card, dataset="cifar10")).rho == 3.0


def test_config_of_an_unknown_defense(tiny_zoo):
    with pytest.raises(UnknownNameError, match="fp"):
        defense_config("fpp", Zoo().card(tiny_zoo))
