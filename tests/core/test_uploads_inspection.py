"""Is a network backdoored, and which images carry a trigger?"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from npd_core.cli.main import main
from npd_core.polarizer.artifact import save_polarizer
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.uploads.inspection import auroc, changes
from npd_core.zoo import Zoo
from tests.core.test_uploads_images import PNG, archive

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Two classes; logits from the mean of an image."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.sign * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack((-score, score), 1)


def test_changed_images_are_ranked_by_the_fall_of_their_probability():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    found = changes(Fixed(4.0), Fixed(-4.0), images, CPU)
    assert found.before == [0, 0, 1]
    assert found.after == [1, 1, 0]
    assert found.changed[-1] == 1
    assert found.scores[0] == pytest.approx(torch.tensor(4.0).sigmoid().mul(2).sub(1).item(), abs=1e-5)
    assert found.by_class() == {0: (2, 2), 1: (1, 1)}
    assert changes(Fixed(4.0), Fixed(4.0), images, CPU).changed == []


def test_auroc_against_its_definition():
    one, other = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 0.0])
    pairs = (one[:, None] > other).float() + 0.5 * (one[:, None] == other).float()
    assert auroc(one, other) == pytest.approx(float(pairs.mean()))


def test_the_command_lists_suspects_and_refuses_what_it_cannot_do(tiny_zoo, runs_dir, tmp_path, capsys):
    suspects = archive(tmp_path / "x.zip", {"a.png": PNG, "b/c.png": PNG})
    card, net, _ = Zoo().load(tiny_zoo)
    save_polarizer(PolarizedNet(net, card.layer), tmp_path / "run", {})
    options = ["--no-masks", "--polarizer", str(tmp_path / "run"), "--test-images", "20", "--json", "-"]
    assert main(["inspect", tiny_zoo, *options, "--images", str(suspects)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in value["suspects"]] == ["a.png", "b/c.png"]
    assert not any(row["changed"] for row in value["suspects"]), "a new polarizer is the identity"
    assert value["clean"]["changed"] == 0
    assert value["masks"] is None
    for wrong in (["--no-masks"], ["--images", str(suspects)], ["--polarizer", str(tmp_path / "none")]):
        assert main(["inspect", tiny_zoo, *wrong]) == 2
