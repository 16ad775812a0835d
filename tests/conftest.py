"""What every test can ask for. No test writes to the project's own `runs/`, and none depends on the caller's
shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from npd_core.zoo.weights import Backdoored

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

TINY_MODEL = "signs-badnets_a2o-preact_resnet18-w4"
TINY_ACC, TINY_ASR, TINY_RA = 0.990278, 1.0, 0.0  # measured on the test split when it was made

# Before anything imports torch: two threads at most, so that a test costs the same on every machine; one
# where two processes share the tests, whatever they inherit, as threads that wait for each other would take
# turns at spinning.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # processes that tests start keep what they compile: seconds each


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to a temporary folder; zoo and data are the project's own unless a fixture below says
    otherwise."""
    monkeypatch.setenv("NPD_RUNS_DIR", str(tmp_path_factory.getbasetemp() / "runs"))
    monkeypatch.delenv("NPD_ZOO_DIR", raising=False)
    monkeypatch.delenv("NPD_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Same random numbers in every test, alone or in company."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture
def real_data(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10, GTSRB and Tiny ImageNet, in `../shared/data` beside the project; without it the test is
    skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real images are not here: {SHARED_DATA} does not exist")
    monkeypatch.setenv("NPD_DATA_DIR", str(SHARED_DATA))
    return SHARED_DATA


@pytest.fixture
def runs_dir(own_folders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run store of this test alone."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("NPD_RUNS_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of one model, made by tests/golden/make_tiny_net.py; shared by the session, so not to be
    changed."""
    from safetensors.torch import load_file

    from npd_core.data.spec import get_dataset
    from npd_core.models import build_model
    from npd_core.zoo import Zoo
    from npd_core.zoo.card import Card

    spec = get_dataset("signs")
    net = build_model("preact_resnet18", spec.num_classes, 4, spec.mean, spec.std)
    state = load_file(ROOT / "tests" / "golden" / "tiny_net.safetensors")
    net.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
    card = Card(
        id=TINY_MODEL,
        dataset="signs",
        attack="badnets_a2o",
        attack_params={"target": 0},
        poison_ratio=0.2,
        target=f"class 0 ({spec.classes[0]})",
        arch="preact_resnet18",
        width=4,
        num_classes=spec.num_classes,
        image_size=spec.size,
        mean=spec.mean,
        std=spec.std,
        recipe={},
        seed=0,
        acc=TINY_ACC,
        asr=TINY_ASR,
        ra=TINY_RA,
        seconds=0.0,
        versions={},
    )
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPD_ZOO_DIR", str(folder))
        Zoo().save(net, card)
    return folder


@pytest.fixture
def tiny_zoo(own_folders: None, tiny_zoo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a backdoored width-4 model of `signs`, the only one in the zoo of this test."""
    monkeypatch.setenv("NPD_ZOO_DIR", str(tiny_zoo_folder))
    return TINY_MODEL


@pytest.fixture
def own_zoo(tiny_zoo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backdoored:
    """A copy of the tiny zoo that a test may damage."""
    from npd_core.zoo import Zoo

    backdoored = Zoo().load(tiny_zoo)
    monkeypatch.setenv("NPD_ZOO_DIR", str(tmp_path))
    return backdoored._replace(card=Zoo().save(backdoored.net, backdoored.card))
