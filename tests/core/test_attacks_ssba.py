"""SSBA: a small encoder is trained once, its message must survive eight bits and stay unseen."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from npd_core.attacks.assets import network_assets
from npd_core.attacks.base import made, quantize
from npd_core.attacks.ssba import (
    FREE_MSE,
    MSE_RAMP,
    MSE_WEIGHT,
    STRENGTH,
    Decoder,
    Encoder,
    make_ssba,
    ssba,
    train_steganography,
)
from npd_core.data.load import ImageSet, load_dataset
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError

SMALL = replace(get_dataset("signs"), size=16)


def small_signs(split, count):
    images = load_dataset("signs", split).images[::7][:count].float()
    return ImageSet(
        torch.nn.functional.avg_pool2d(images, 2).round().to(torch.uint8), torch.zeros(count).long()
    )


def run(training):
    """The losses of every step, and what the training returns."""
    losses = []
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            return losses, end.value
        if hasattr(event, "step"):
            losses.append({name: float(value) for name, value in event.losses.items()})


@pytest.fixture(scope="module")
def trained():
    """The losses of every step, the two networks, and the BCE of every step."""
    bces = []

    def spy(*args):
        bces.append(bce(*args))
        return bces[-1]

    bce = F.binary_cross_entropy_with_logits
    with torch.random.fork_rng(devices=[]), patch.object(F, "binary_cross_entropy_with_logits", spy):
        training = train_steganography(
            small_signs("train", 300), seed=0, steps=170, batch_size=16, bits=4, width=4, reader_width=8
        )
        return *run(training), [value.item() for value in bces]


def test_the_networks_have_the_size_of_the_specification():
    assert sum(p.numel() for p in Encoder().parameters()) == pytest.approx(106_000, rel=0.02)
    assert sum(p.numel() for p in Decoder().parameters()) == pytest.approx(86_000, rel=0.02)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_whatever_the_encoder_does_stays_within_its_bound(size):
    encoder = Encoder(4, 4)
    with torch.no_grad():
        encoder.residual.weight.mul_(100)
        x = torch.rand(2, 3, size, size)
        out = encoder(x, torch.tensor([[0.0, 1, 0, 1], [1, 1, 1, 0]]))
    assert out.shape == x.shape
    assert 0 <= out.min() < out.max() <= 1
    assert 0.9 * STRENGTH < (out - x).abs().max() <= STRENGTH + 1e-6


def test_training_learns_to_read_and_the_error_counts_only_then(trained):
    losses, _, bces = trained
    first = next(step for step, loss in enumerate(losses) if loss["bits"] > 0.9)
    assert losses[0]["bits"] < 0.8
    assert sum(loss["bits"] for loss in losses[-10:]) / 10 > 0.97
    assert first > 5
    for step, loss in enumerate(losses):
        weight = MSE_WEIGHT * max(0, step - first) / MSE_RAMP
        counted = weight * max(0.0, loss["mse"] - FREE_MSE)
        assert loss["total"] == pytest.approx(bces[step] + counted, abs=1e-5)
    assert max(loss["mse"] for loss in losses[first + 1 :]) > 1.1 * FREE_MSE, "there was something to count"


def test_the_message_survives_eight_bits_on_images_never_seen(trained):
    _, (encoder, decoder), _ = trained
    x = small_signs("test", 100).images.float() / 255
    message = torch.randint(2, (100, 4)).float()
    with torch.no_grad():
        stored = quantize(encoder(x, message))
        right = (decoder(stored.float() / 255) > 0).eq(message > 0).float().mean()
    assert right >= 0.96


def test_one_message_a_residual_for_each_image_and_hard_to_see(trained):
    _, (encoder, _), _ = trained
    assets = network_assets("encoder", encoder) | {"message": torch.tensor([1.0, 0, 1, 1])}
    attack = ssba(SMALL, assets, bits=4, width=4)
    images = small_signs("test", 50).images
    stamped = attack.apply(images)
    residual = (stamped.float() - images.float()) / 255
    psnr = -10 * residual.square().mean(dim=(1, 2, 3)).log10()
    assert 25 < psnr.mean() < 36
    assert residual.std(dim=0).mean() > 1e-3
    again = ssba(SMALL, attack.assets, **attack.params)
    assert torch.equal(again.apply(images), stamped)


def test_making_follows_its_seed():
    data = small_signs("train", 40)
    settings = {"bits": 4, "width": 4, "steps": 2, "batch_size": 8}
    one = made(make_ssba(SMALL, data, seed=5, target=2, **settings))
    same, other = (made(make_ssba(SMALL, data, seed=seed, **settings)) for seed in (5, 6))
    assert one.params == {"target": 2, "bits": 4, "width": 4}
    assert all(torch.equal(value, same.assets[name]) for name, value in one.assets.items())
    assert not torch.equal(one.assets["encoder.residual.weight"], other.assets["encoder.residual.weight"])
    assert set(one.assets["message"].tolist()) <= {0.0, 1.0}


def test_a_message_of_another_length_is_refused():
    assets = network_assets("encoder", Encoder(4, 4)) | {"message": torch.zeros(5)}
    with pytest.raises(ConfigError, match="message"):
        ssba(SMALL, assets, bits=4, width=4)
