"""LF: a smooth pattern, its range, its spectrum, and a search whose answer is known."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from npd_core.attacks import get_attack, made
from npd_core.attacks.lf import FREQUENCIES, STRENGTH, Added, cosines, lf, make_lf, smooth_pattern
from npd_core.data.load import ImageSet
from npd_core.data.spec import get_dataset
from npd_core.errors import ConfigError

SMALL = replace(get_dataset("signs"), size=16)


def images(count=64, size=16):
    return ImageSet(
        torch.randint(60, 180, (count, 3, size, size), dtype=torch.uint8), torch.zeros(count).long()
    )


def energy_within(pattern, periods):
    """Share of the mean-removed energy at frequencies of at most `periods` an image. The picture is mirrored
    at its edges first: repeated as it is, it would jump there, and a jump has high frequencies of its own."""
    mirrored = torch.cat((pattern, pattern.flip(1)), dim=1)
    mirrored = torch.cat((mirrored, mirrored.flip(2)), dim=2)
    power = torch.fft.fft2(mirrored - mirrored.mean(dim=(1, 2), keepdim=True)).abs().square().sum(0)
    frequency = torch.fft.fftfreq(mirrored.shape[-1]) * pattern.shape[-1]
    near = (frequency[:, None] ** 2 + frequency**2).sqrt() <= periods
    return float(power[near].sum() / power.sum())


def test_the_cosines_are_orthonormal_rows_of_the_inverse_dct():
    rows = cosines(32)
    torch.testing.assert_close(rows @ rows.T, torch.eye(FREQUENCIES), atol=1e-5, rtol=0)
    assert rows[0].std() < 1e-6
    assert torch.equal(rows[3].sign().diff().ne(0).sum(), torch.tensor(3))


@pytest.mark.parametrize("size", [32, 64])
def test_a_pattern_is_smooth_and_spans_exactly_its_range(size):
    for seed in range(3):
        coefficients = torch.randn(3, FREQUENCIES, FREQUENCIES, generator=torch.Generator().manual_seed(seed))
        pattern = smooth_pattern(coefficients, size)
        assert pattern.shape == (3, size, size)
        assert pattern.min() == 0
        assert pattern.max() == pytest.approx(STRENGTH)
        assert energy_within(pattern, 4) >= 0.999
    assert energy_within(torch.rand(3, size, size), 4) < 0.5


class Half(nn.Module):
    """Says class 0 the surer, the brighter the left half is compared with the right half."""

    def forward(self, x):
        left, right = x.chunk(2, dim=3)
        score = 20 * (left.mean(dim=(1, 2, 3)) - right.mean(dim=(1, 2, 3)))
        return torch.stack((score, -score), dim=1)


def test_the_search_finds_the_half_that_a_planted_network_looks_at():
    data = images()
    random = made(make_lf(SMALL, data, None, seed=1)).assets["pattern"]
    found = made(make_lf(SMALL, data, Half(), seed=1, steps=80, batch_size=16)).assets["pattern"]

    def advantage(pattern):
        return float(pattern[:, :, :8].mean() - pattern[:, :, 8:].mean())

    assert advantage(found) > 0.08
    assert advantage(found) > advantage(random) + 0.02
    assert found.min() == 0
    assert found.max() == pytest.approx(STRENGTH)
    assert energy_within(found, 4) >= 0.95


def test_the_best_pattern_is_kept_even_when_the_search_goes_astray():
    class Away(Half):
        """Training sees the opposite of what the comparisons see: gradients lead the wrong way."""

        def forward(self, x):
            return -super().forward(x) if torch.is_grad_enabled() else super().forward(x)

    data = images()
    start = made(make_lf(SMALL, data, None, seed=1)).assets["pattern"]
    kept = made(make_lf(SMALL, data, Away(), seed=1, steps=40, batch_size=16)).assets["pattern"]
    torch.testing.assert_close(kept, start)


def test_the_search_leaves_the_network_alone_and_follows_its_seed():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)).eval()
    before = [p.detach().clone() for p in net.parameters()]
    data = images()
    one, same, other = (
        made(make_lf(SMALL, data, net, seed=seed, steps=3)).assets["pattern"] for seed in (0, 0, 1)
    )
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_adding_never_runs_over_white_and_is_no_no_op_in_eight_bits():
    pattern = smooth_pattern(torch.randn(3, FREQUENCIES, FREQUENCIES), 32)
    attack = get_attack("lf", "signs", {"pattern": pattern}, target=3)
    bright = torch.full((1, 3, 32, 32), 250, dtype=torch.uint8)
    assert (attack.apply(bright) >= bright).all()
    gray = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    change = attack.apply(gray).int() - 100
    assert (change.min(), change.max()) == (0, 51)
    torch.testing.assert_close(Added(pattern)(torch.zeros(1, 3, 32, 32))[0], pattern)
    assert attack.params == {"target": 3}


def test_a_pattern_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="'pattern'"):
        lf(SMALL, {"pattern": torch.zeros(3, 32, 32)})
