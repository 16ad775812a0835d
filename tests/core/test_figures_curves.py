"""Records of a run, read and drawn: positions, thinning, time left; the plan of the network against the
network."""

import dataclasses

import numpy as np
import pytest

from npd_core.errors import ConfigError, UnknownNameError
from npd_core.events import EpochEnd, Finished, Measured, Started, StepEnd, to_record
from npd_core.figures import curves, network, theme
from npd_core.figures.gallery import Item, Prediction, read_gallery, write_gallery


def stream(epochs=2, warmup=1, steps=4, until=None):
    """Events of a made-up run: the total loss is the number of steps done, an epoch takes 2 seconds."""
    events = [Started(epochs, warmup, steps, 100, "cpu", "layer4.1.conv1")]
    for epoch in range(-warmup, epochs if until is None else until):
        for step in range(steps):
            done = float((epoch + warmup) * steps + step + 1)
            terms = {"bn": 1.0, "total": done}
            if epoch >= 0:
                terms |= {"asr": 2.0, "bce1": 3.0, "bce2": 0.0}
            events.append(StepEnd(epoch, step, terms))
        events.append(EpochEnd(epoch, {"total": done}, 2.0 * (epoch + warmup + 1)))
        if epoch >= 0:
            events.append(Measured(epoch, 0.9 - 0.01 * epoch, 0.5 / (epoch + 1), 0.4, 1000))
    return [to_record(event) for event in events]


def test_losses_lie_at_their_place_in_epochs():
    read = curves.read_losses(stream())
    assert read.x == [-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert read.terms["total"] == [float(n) for n in range(1, 13)]
    assert read.terms["asr"] == [None] * 4 + [2.0] * 8
    assert list(read.terms) == ["total", "bn", "asr", "bce1", "bce2"]


def test_losses_fall_back_to_epochs_where_no_step_was_kept():
    records = [record for record in stream() if record["type"] != "StepEnd"]
    assert curves.read_losses(records) == curves.LossCurves([0.0, 1.0, 2.0], {"total": [4.0, 8.0, 12.0]})


def test_thinning_keeps_the_ends_and_the_limit():
    records = stream(epochs=50, warmup=0, steps=40)
    read = curves.read_losses(records, limit=100)
    assert len(read.x) == 100
    assert read.x[0] == 1 / 40
    assert read.x[-1] == 50.0


def test_nothing_read_from_nothing():
    assert curves.read_losses([]) == curves.LossCurves([], {})
    assert curves.read_metrics([]) == curves.MetricCurves([], [], [], [])


def test_metrics_start_with_the_backdoored_model_at_epoch_0():
    read = curves.read_metrics(stream(), {"acc": 0.95, "asr": 0.99, "ra": 0.01})
    assert read.epochs == [0, 1, 2]
    assert read.acc == [0.95, 0.9, 0.89]
    assert read.asr == [0.99, 0.5, 0.25]


@pytest.mark.parametrize("mode", ["light", "dark", None])
def test_figures_tell_lines_apart_without_color(mode):
    metrics = curves.metric_figure(
        curves.read_metrics(stream(), {"acc": 1.0, "asr": 1.0, "ra": 0.0}), mode, 2
    )
    assert len({line.line.dash for line in metrics.data}) == 3
    assert len({line.marker.symbol for line in metrics.data}) == 3
    losses = curves.loss_figure(curves.read_losses(stream()), mode)
    assert len({(line.line.dash, line.line.width) for line in losses.data}) == 5
    assert losses.data[-1].y[-1] is None  # a loss of 0 has no place on a log axis


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_color_that_carries_words_has_contrast(mode):
    colors = theme.palette(mode)
    for name in ("benign", "trigger", "polarizer", "green", "text", "muted"):
        bright, dim = sorted((luminance(getattr(colors, name)), luminance(colors.background)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, name


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("arch", network.PLANS)
def test_plan_has_the_layers_of_the_network_itself(arch, size):
    from npd_core.models import build_model
    from npd_core.polarizer.insertion import insertion_layers

    net = build_model(arch, 12, 4, (0.5,) * 3, (0.25,) * 3)
    drawn = network.plan(arch, 4, size, 12)
    real = {str(info.layer): info for info in insertion_layers(net, size)}
    assert sorted(drawn.layers()) == sorted(real)
    assert list(drawn.kinds()) == sorted(
        {info.layer.kind for info in real.values()}, key=list(network.KINDS).index
    )
    for conv in drawn.convs():
        before, after = real[conv.name], real[f"after:{conv.name}"]
        assert (before.channels, before.height) == (conv.channels_in, conv.size)
        assert (after.channels, after.height) == (conv.channels_out, conv.size // conv.stride)


def test_every_architecture_has_a_drawing():
    from npd_core.models import MODELS

    assert list(network.PLANS) == list(MODELS)


def test_a_plain_network_is_drawn_without_stem_block_or_shortcut():
    drawn = network.plan("vgg19_bn", 64, 32, 10).to_dict()
    assert drawn["stem"] is None
    assert [len(stage["plain"]) for stage in drawn["stages"]] == [2, 2, 4, 4, 4]
    assert [stage["size"] for stage in drawn["stages"]] == [32, 16, 8, 4, 2]
    assert drawn["stages"][4]["plain"][2]["name"] == "features.46"
    assert not any(stage["blocks"] for stage in drawn["stages"])


def test_layers_in_words():
    assert network.kind_of("layer4.1.conv1") == ("before", "layer4.1.conv1")
    assert network.kind_of("stream:layer4.1") == ("stream", "layer4.1")
    assert network.describe("after:layer1.0.conv1") == "after layer1.0.conv1"


def test_an_architecture_without_a_drawing_is_named():
    with pytest.raises(UnknownNameError, match="preact_resnet18"):
        network.plan("preact_resnet81", 64, 32, 10)


def test_gallery_comes_back_as_it_was_written(tmp_path):
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    items = [
        Item(n, "stop", Prediction("stop", 0.9), Prediction("speed limit 80", 1.0), Prediction("stop", 0.8))
        for n in (7, 9)
    ]
    write_gallery(tmp_path, items, images, images[::-1])
    read = read_gallery(tmp_path)
    assert [dataclasses.replace(item, clean_url="", triggered_url="") for item in read] == items
    assert read[0].clean_url == read[1].triggered_url
    assert read[0].clean_url.startswith("data:image/png;base64,")


def test_gallery_absent_or_damaged_is_no_gallery(tmp_path):
    assert read_gallery(tmp_path) == []
    (tmp_path / "gallery.json").write_text('{"size": 32, "items": [{"index": 1}]}')
    (tmp_path / "gallery.png").write_bytes(b"no picture")
    assert read_gallery(tmp_path) == []
    with pytest.raises(ConfigError):
        write_gallery(tmp_path, [], np.zeros((0, 3, 4, 4), np.uint8), np.zeros((0, 3, 4, 4), np.uint8))


def test_gallery_of_a_run_shows_pictures_that_the_trigger_hijacks(tiny_zoo, tmp_path):
    from npd_core.config.request import DefenseRequest
    from npd_core.data.load import class_names
    from npd_core.exports.example_images import make_gallery
    from npd_core.polarizer.artifact import save_polarizer
    from npd_core.polarizer.insertion import PolarizedNet
    from npd_core.runs.store import RunStore, write_record
    from npd_core.zoo import Zoo

    folder = write_record(
        tmp_path / "abc", DefenseRequest(model=tiny_zoo), [Finished(0, 1.0)], {"model": tiny_zoo}
    )
    save_polarizer(PolarizedNet(Zoo().load(tiny_zoo).net, "layer4.1.conv1"), folder, {"model": tiny_zoo})
    make_gallery(RunStore(tmp_path).get("abc").folder)
    items = read_gallery(folder)
    assert len({item.truth for item in items}) == len(items) == 4
    for item in items:
        assert item.clean.label == item.truth
        assert item.triggered.label == class_names("signs")[0] != item.truth
        assert item.purified == item.triggered  # this polarizer is still the identity
        assert item.clean_url != item.triggered_url
