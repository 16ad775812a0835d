"""Uploaded models: nothing in a file runs, what does not fit is refused, what fits is defended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import stat
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from npd_core import models, paths
from npd_core.config.npd import NPDConfig
from npd_core.config.presets import defense_config
from npd_core.config.request import DefenseRequest
from npd_core.data.load import ImageSet, class_names, load_dataset
from npd_core.data.parquet import write_images
from npd_core.defend import run_defense
from npd_core.errors import CheckpointError, ConfigError, StorageError, UnknownNameError
from npd_core.events import Finished, Measured
from npd_core.models import build_model, load_weights, torchvision_classifier
from npd_core.polarizer.insertion import insertion_layers
from npd_core.uploads import images as uploaded_images
from npd_core.uploads import tensor_file
from npd_core.uploads.checkpoint import read_checkpoint
from npd_core.uploads.images import read_images
from npd_core.uploads.network import recognize, suggested_layer
from npd_core.uploads.resistance import perturbed, resistance
from npd_core.uploads.store import Settings, import_model, remove, split
from npd_core.zoo import Zoo


class Malicious:
    """Unpickled by the plain pickle module it would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def png(image: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8) if image is None else image).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def signs_zip(path: Path, per_class: int, change=lambda image: image) -> Path:
    """Test images of `signs`, in folders named by their labels."""
    data = load_dataset("signs", "test")
    entries = {}
    for label in range(12):
        for k in torch.nonzero(data.labels == label).flatten()[:per_class].tolist():
            image = data.images[k].permute(1, 2, 0).numpy().copy()
            entries[f"set/{label}/{k}.png"] = png(change(image))
    return zipped(path, entries)


# the checkpoint


def test_malicious_files_run_nothing_and_are_refused(tmp_path):
    place = tmp_path / "malicious-was-here"
    evil = {"model": {"w": torch.zeros(2)}, "extra": Malicious(place)}
    torch.save(evil, tmp_path / "evil.pt")
    torch.save(evil, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Malicious(place)))
    (tmp_path / "evil.safetensors").write_bytes(struct.pack("<Q", 20) + pickle.dumps(Malicious(place)))
    for name, names in (
        ("evil.pt", "posix.mkdir"),
        ("old.pt", "posix.mkdir"),
        ("bare.pkl", "posix.mkdir"),
        ("evil.safetensors", r"safetensors.*\.pt"),
    ):
        with pytest.raises(CheckpointError, match=names) as caught:
            read_checkpoint(tmp_path / name)
        assert not place.exists()
        assert "weights_only" not in str(caught.value)
    with contextlib.suppress(Exception):
        pickle.loads((tmp_path / "bare.pkl").read_bytes())
    assert place.exists(), "the test itself is harmless: unpickled, this would have made a folder"


def test_attack_result_of_backdoorbench_is_read_with_stand_ins_for_its_arrays(tmp_path):
    state = OrderedDict(w=torch.arange(6.0).view(2, 3))
    marks = {"poison_indicator": np.zeros(9), "original_index_array": np.arange(9), "name": np.float64(1.5)}
    torch.save(
        {
            "model_name": "preactresnet18",
            "num_classes": 10,
            "img_size": (32, 32, 3),
            "model": state,
            "bd_train": marks,
        },
        tmp_path / "attack_result.pt",
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "attack_result.pt", weights_only=True)  # torch alone refuses the arrays
    read = read_checkpoint(tmp_path / "attack_result.pt")
    assert (read.arch, read.num_classes, read.image_size) == ("preactresnet18", 10, 32)
    assert list(read.state) == ["w"]
    assert torch.equal(read.state["w"], state["w"])


def test_prefix_of_parallel_training_goes_and_half_precision_becomes_float(tmp_path):
    torch.save(
        {"state_dict": {"module.a": torch.ones(2).half(), "module.b": torch.zeros(1)}}, tmp_path / "x.pth"
    )
    state = read_checkpoint(tmp_path / "x.pth").state
    assert {name: value.dtype for name, value in state.items()} == {"a": torch.float32, "b": torch.float32}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"w": torch.tensor([1.0, float("nan")])}, "'w'.*NaN"),
        ({"epoch": 3}, r"'epoch'.*`net\.state_dict\(\)`.*state_dict, model_state_dict"),
        ([torch.ones(2)], r"`net\.state_dict\(\)`.*state_dict, model_state_dict"),
        ({"w": torch.ones(2, 2).to_sparse()}, r"'w'.*sparse"),
        ({"w": torch.ones(1).expand(10**9)}, "700 MB"),
        ({3: torch.ones(2)}, r"`net\.state_dict\(\)`"),
    ],
)
def test_states_that_are_none(tmp_path, content, names):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=names):
        _ = read_checkpoint(tmp_path / "x.pt").state


def test_a_file_that_unpacks_to_more_than_allowed_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_BYTES", 100_000)
    bomb = zipped(tmp_path / "bomb.pt", {"archive/data.pkl": b"\0" * 1_000_000})
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=" 1 MB"):
        read_checkpoint(bomb)
    (tmp_path / "big.safetensors").write_bytes(b"\0" * 100_001)
    with pytest.raises(CheckpointError, match=" 0 MB"):
        read_checkpoint(tmp_path / "big.safetensors")


# the network


def other_names(arch: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As other code calls the same weights: a shortcut is a list, VGG's head a classifier."""
    if arch == "preact_resnet18":
        return {name.replace(".shortcut.", ".shortcut.0."): value for name, value in state.items()}
    return {name.replace("linear.", "classifier."): value for name, value in state.items()}


@pytest.mark.parametrize("arch", ["preact_resnet18", "vgg19_bn"])
def test_our_architectures_by_the_names_of_others(arch):
    net = build_model(arch, 7, 4).net.eval()
    found = recognize(other_names(arch, net.state_dict()))
    assert (found.arch, found.width, found.num_classes) == (arch, 4, 7)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.net(x), net(x))
    assert (
        suggested_layer(found.net, arch, 32)
        == {"preact_resnet18": "stream:layer4.0", "vgg19_bn": "features.46"}[arch]
    )


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "stream:layer4.1"), ("squeezenet1_1", None)])
def test_torchvisions_classifiers(name, layer):
    net = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    found = recognize(net.state_dict(), name)
    assert (found.arch, found.num_classes) == (f"torchvision:{name}", 5)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(found.net(x), net(x))
    chosen = suggested_layer(found.net, found.arch, 64)
    assert layer is None or chosen == layer
    assert chosen in [info.name for info in insertion_layers(found.net, 64)]


def test_a_large_network_is_not_made_for_weights_that_do_not_fit(monkeypatch):
    made = []

    def watched(name, num_classes):
        net = torchvision_classifier(name, num_classes)
        made.append(next(net.parameters()).device.type)
        return net

    monkeypatch.setattr(models, "torchvision_classifier", watched)
    with pytest.raises(CheckpointError, match=r"vit_l_16.*'class_token'"):
        recognize({"heads.head.weight": torch.ones(3, 1024), "heads.head.bias": torch.ones(3)}, "vit_l_16")
    assert set(made) == {"meta"}


def test_weights_that_fit_nothing_or_something_else():
    state = build_model("preact_resnet18", 3, 2).net.state_dict()
    lacking = {name: value for name, value in state.items() if name != "layer2.0.conv1.weight"}
    for given, arch, names in (
        (lacking, "auto", "preact_resnet18.*'layer2.0.conv1.weight'"),
        (state | {"more": torch.ones(1)}, "auto", "preact_resnet18.*'more'"),
        (state | {"layer2.0.conv1.weight": torch.ones(1, 1, 3, 3)}, "auto", "'layer2.0.conv1.weight'"),
        ({"a": torch.ones(1)}, "auto", "'a'.*preact_resnet18, vgg19_bn"),
        (state, "resnet18", "resnet18"),
        (state, "vgg19_bn", "vgg19_bn"),
    ):
        with pytest.raises(CheckpointError, match=names):
            recognize(given, arch)
    with pytest.raises(UnknownNameError, match=r"'resnet1'.*'resnet18'|'resnet1'.*'\\w*resnet\\w*'"):
        recognize(state, "resnet1")


def test_images_of_a_size_that_the_network_does_not_take():
    with pytest.raises(CheckpointError, match="16 x 16"):
        suggested_layer(build_model("vgg19_bn", 3, 2).net, "torchvision:x", 16)


# the images


def test_class_folders_by_name_and_by_number(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    entries = {
        "a/dog/1.png": png(red),
        "a/cat/2.png": png(),
        "__MACOSX/a/._1.png": b"x",
        "a/cat/.DS_Store": b"x",
    }
    found = read_images(zipped(tmp_path / "x.zip", entries), 8, 2)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1]
    assert found.images[1, 0].min() == 200
    assert found.images[1, 1:].max() == 0
    found = read_images(zipped(tmp_path / "y.zip", {"3/1.png": png(), "10/2.png": png()}), 16, 11)
    assert found.labels.tolist() == [10, 3]
    assert found.images.shape == (2, 3, 16, 16)
    assert len(found.classes) == 11


@pytest.mark.parametrize(
    ("entries", "error", "names"),
    [
        ({"../0/x.png": png()}, ConfigError, r"'\.\./0/x\.png'"),
        ({"/0/x.png": png()}, ConfigError, r"'/0/x\.png'"),
        ({"..\\x.png": png()}, ConfigError, r"x\.png"),
        ({"x.png": png()}, ConfigError, r"'x\.png'"),
        ({"readme.txt": b"hello"}, ConfigError, r"\.png, \.jpg"),
        ({"0/x.png": b"not an image"}, StorageError, r"'0/x\.png'"),
        ({"0/x.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"}, StorageError, r"'0/x\.png'"),
        ({"9/x.png": png()}, ConfigError, "9 .*0 to 1"),
        ({"cat/x.png": png()}, ConfigError, "2 .* 1 .*0 to 1"),
    ],
)
def test_archives_that_are_refused(tmp_path, entries, error, names):
    with pytest.raises(error, match=names):
        read_images(zipped(tmp_path / "x.zip", entries), 8, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_bombs_links_and_too_many_images(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"'0/x\.png'.*20 MB"):
        read_images(zipped(tmp_path / "bomb.zip", {"0/x.png": b"\0" * 20_000_001}), 8, 2)
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        entry = zipfile.ZipInfo("0/x.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ConfigError, match=r"'0/x\.png'"):
        read_images(tmp_path / "link.zip", 8, 2)
    monkeypatch.setattr(uploaded_images, "MAX_IMAGES", 1)
    with pytest.raises(ConfigError, match=r"\b2\b.*\b1\b"):
        read_images(zipped(tmp_path / "many.zip", {"0/x.png": png(), "1/x.png": png()}), 8, 2)
    monkeypatch.setattr(uploaded_images, "MAX_ENTRIES", 1)
    with pytest.raises(ConfigError, match=r"\b2\b.*\b1\b"):
        read_images(tmp_path / "many.zip", 8, 2)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:200])
    with pytest.raises(StorageError):
        read_images(tmp_path / "cut.zip", 8, 2)
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StorageError, match=r"\.zip.*\.parquet"):
        read_images(tmp_path / "text.zip", 8, 2)


def test_a_compressed_checkpoint_and_a_large_description_are_refused(tmp_path, monkeypatch):
    small = zipped(tmp_path / "small.pt", {"archive/data.pkl": b"\x80\x02]."})
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        read_checkpoint(small)
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    assert set(read_checkpoint(tmp_path / "x.pt").state) == {"w"}
    monkeypatch.setattr(tensor_file, "MAX_PICKLE", 10)
    with pytest.raises(CheckpointError, match="MB"):
        read_checkpoint(tmp_path / "x.pt")


def test_numbers_of_few_bits_are_counted_as_what_they_become(tmp_path, monkeypatch):
    save_file({"w": torch.zeros(100, dtype=torch.float16)}, tmp_path / "half.safetensors")
    read_checkpoint(tmp_path / "half.safetensors")
    monkeypatch.setattr(tensor_file, "MAX_BYTES", 399)
    with pytest.raises(CheckpointError, match="MB"):
        read_checkpoint(tmp_path / "half.safetensors")
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        read_checkpoint(tmp_path / "eight.safetensors")


def test_one_blob_in_many_rows_is_counted_in_each(tmp_path, monkeypatch):
    blob = np.random.default_rng(0).bytes(50_000)
    image = pa.array(
        [{"bytes": blob, "path": ""}] * 200, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": image, "label": pa.array([0] * 200)}), path)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(uploaded_images, "MAX_FILE", 5_000_000)
    with pytest.raises(ConfigError, match=" 5 MB"):
        read_images(path, 8, 2)


def test_images_that_are_text_are_refused(tmp_path):
    image = pa.array([{"bytes": "abc"}], pa.struct([("bytes", pa.string())]))
    pq.write_table(pa.table({"image": image, "label": pa.array([0])}), tmp_path / "x.parquet")
    with pytest.raises(StorageError, match=r"`bytes`.*'image' holds string"):
        read_images(tmp_path / "x.parquet", 8, 2)


def test_what_images_become_is_bounded(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", {f"{k}/{n}.png": png() for k in (0, 1) for n in range(3)})
    read_images(path, 8, 2)
    monkeypatch.setattr(uploaded_images, "MAX_DECODED", 1000)
    with pytest.raises(ConfigError, match=r"6 .*8 x 8"):
        read_images(path, 8, 2)


def test_a_network_that_asks_for_versions_is_loaded_again():
    """MNASNet's modules look at the version that only their own dictionary knows."""
    net = torchvision.models.mnasnet0_5(num_classes=3)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    other = torchvision.models.mnasnet0_5(num_classes=3)
    load_weights(other, state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    del state["classifier.1.bias"]
    with pytest.raises(RuntimeError, match=r"classifier\.1\.bias"):
        load_weights(other, state)


def test_parquet_with_names_and_too_large(tmp_path, monkeypatch):
    path = write_images(tmp_path / "x.parquet", [("a", png(), 1), ("b", png(), 0)], ["cat", "dog"])
    found = read_images(path, 4, 2)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [1, 0]
    monkeypatch.setattr(uploaded_images, "MAX_IMAGES", 1)
    with pytest.raises(ConfigError, match=r"\b2\b.*\b1\b"):
        read_images(path, 4, 2)


def test_split_halves_every_class_and_shares_nothing():
    labels = np.repeat([0, 1, 2], [7, 4, 1])
    kept, held_out = split(labels, 3)
    assert sorted([*kept, *held_out]) == list(range(12))
    assert np.bincount(labels[kept]).tolist() == [4, 2, 1]
    with pytest.raises(ConfigError, match="3 "):
        split(np.array([0, 1, 2]), 0)


# all of it


@pytest.fixture
def stolen(tiny_zoo, runs_dir, tmp_path) -> Path:
    """The tiny model's weights as a foreign file, under BackdoorBench's names."""
    net = Zoo().load(tiny_zoo).net.net
    torch.save(
        {"model": other_names("preact_resnet18", net.state_dict()), "num_classes": 12}, tmp_path / "net.pt"
    )
    return tmp_path / "net.pt"


STANDARD = Settings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_an_uploaded_model_is_defended_like_one_of_the_zoo(stolen, tiny_zoo, tmp_path):
    card = import_model(stolen, signs_zip(tmp_path / "clean.zip", 6), STANDARD)
    found = Zoo().load(card.id)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(found.net(x), Zoo().load(tiny_zoo).net(x)), "the weights are those that were uploaded"
    used, held_out = load_dataset(card.id, "train"), load_dataset(card.id, "test")
    assert (used.size, held_out.size, len(class_names(card.id))) == (36, 36, 12)
    with torch.no_grad():
        right = found.net(held_out.images.float() / 255).argmax(1).eq(held_out.labels)
    assert card.acc == pytest.approx(float(right.float().mean()))
    config = NPDConfig(epochs=1, warmup_epochs=0, batch_size=18, attack_on="base", seed=0)
    request = DefenseRequest(
        model=card.id, layer="stream:layer3.0", clean=used.size, config=config, eval_images=20
    )
    *events, last = run_defense(request, tmp_path / "out")
    assert isinstance(last, Finished)
    assert last.result["before"] == {"acc": card.acc, "asr": None, "ra": None}, "no trigger, no ASR"
    assert last.result["der"] is None
    assert [(e.asr, e.ra) for e in events if isinstance(e, Measured)] == [(None, None)]
    assert len(last.result["clean_indices"]) == used.size
    from npd_core.exports.report import run_report

    text = run_report(tmp_path / "out")
    assert "ASR</th><td>–</td><td>–</td>" in text
    remove(card.id)
    assert list(paths.uploads().iterdir()) == []
    with pytest.raises(UnknownNameError, match=card.id):
        Zoo().load(card.id)


def test_asr_is_measured_on_images_that_carry_the_trigger(stolen, tiny_zoo, tmp_path):
    attack = Zoo().load(tiny_zoo).attack

    def stamp(image: np.ndarray) -> np.ndarray:
        return attack.apply(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    clean = signs_zip(tmp_path / "clean.zip", 2)
    card = import_model(
        stolen,
        clean,
        Settings(mean=STANDARD.mean, std=STANDARD.std, target=0),
        signs_zip(tmp_path / "triggered.zip", 3, stamp),
    )
    config = NPDConfig(epochs=1, warmup_epochs=0, batch_size=12, lr=1e-9, attack_on="base")
    *_, last = run_defense(DefenseRequest(model=card.id, layer="layer4.1.conv1", clean=12, config=config))
    data = load_dataset("signs", "test")
    rows = torch.cat(
        [torch.nonzero(data.labels == k).flatten()[:3] for k in range(1, 12)]
    )  # class 0 is the target
    with torch.no_grad():
        said = Zoo().load(tiny_zoo).net(attack.apply(data.images[rows]).float() / 255).argmax(1)
    assert last.result["before"]["asr"] == pytest.approx(float((said == 0).float().mean()))
    assert last.result["before"]["ra"] == pytest.approx(float((said == data.labels[rows]).float().mean()))
    assert last.result["der"] is not None
    with pytest.raises(ConfigError, match="`target`"):
        import_model(stolen, clean, Settings(target=1))
    with pytest.raises(ConfigError, match=r"`target`.*0 to 11.*12"):
        import_model(stolen, clean, Settings(target=12), clean)


def test_what_is_refused_leaves_nothing(stolen, tmp_path, monkeypatch):
    clean = signs_zip(tmp_path / "clean.zip", 1)
    with pytest.raises(ConfigError, match="12 "):
        import_model(stolen, clean, STANDARD)
    assert not paths.uploads().exists()
    for bad in (
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (0.0, float("inf"), 0.0)},
        {"image_size": 4},
        {"mean": (1.0,)},
    ):
        with pytest.raises(ConfigError):
            Settings(**bad)
    monkeypatch.setattr("npd_core.uploads.store.MOST", 0)
    paths.uploads().mkdir(parents=True)
    with pytest.raises(ConfigError, match=re.escape(str(paths.uploads()))):
        import_model(stolen, clean, STANDARD)


def test_ids_of_uploaded_models_cannot_leave_their_folder(runs_dir):
    for kind in ("uploaded", "own"):  # the second: an earlier version's
        name = f"{kind}-0123456789abcdef"
        assert paths.uploaded(name) == runs_dir / f".{kind}" / name
    for name in (
        "uploaded-..",
        "own-0123456789abcde/",
        "uploaded-0123456789ABCDEF",
        "signs",
        "own-0123456789abcdef\n",
    ):
        assert paths.uploaded(name) is None


def test_a_model_that_an_earlier_version_stored_opens(stolen, runs_dir, tmp_path):
    card = import_model(stolen, signs_zip(tmp_path / "clean.zip", 2), STANDARD)
    old = card.id.replace("uploaded", "own")
    (runs_dir / ".own").mkdir()
    card.folder.rename(runs_dir / ".own" / old)
    for name in ("card.json", "data.json"):
        file = runs_dir / ".own" / old / name
        file.write_text(file.read_text().replace(card.id, old))
    assert Zoo().load(old).card.id == old
    assert load_dataset(old, "test").size == 12
    remove(old)
    assert list((runs_dir / ".own").iterdir()) == []


def test_a_changed_file_is_refused(stolen, tmp_path):
    card = import_model(stolen, signs_zip(tmp_path / "clean.zip", 2), STANDARD)
    save_file({"mean": torch.zeros(1)}, card.folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="sha256"):
        Zoo().load(card.id)
    shutil.rmtree(card.folder)


class Threshold(torch.nn.Module):
    """Two classes: 1 where the mean of all pixels is above `at`."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = torch.nn.Parameter(torch.tensor(at))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = 100 * (x.mean((1, 2, 3)) - self.at)
        return torch.stack((-score, score), 1)


def test_resistance_counts_what_a_budget_cannot_move():
    """One step of sign moves every pixel by 0.1, then the ball of L2 radius rho bounds the mean's change by
    rho / sqrt(3 H W): with rho = 0.6 and 48 pixels that is 0.0866."""
    levels = torch.tensor([0.30, 0.42, 0.50, 0.58, 0.70])
    images = (levels[:, None, None, None] * 255).round().to(torch.uint8).expand(-1, 3, 4, 4).contiguous()
    data = ImageSet(images, torch.tensor([0, 0, 1, 1, 1]))
    cfg = NPDConfig(rho=0.6, inner_steps=1, inner_lr=0.1)
    found = resistance(Threshold(0.45), Threshold(0.45), data, cfg)
    # 0.42 crosses upward, 0.50 crosses downward; 0.58 ends at 0.493, 0.30 and 0.70 are far away
    assert found == (5, 0.6, 0.6, 0.6)
    easier = resistance(Threshold(0.45), Threshold(0.40), data, cfg)
    assert easier.before == 0.6
    assert easier.transferred == pytest.approx(
        3 / 5 + 1 / 5 - 0.0
    )  # 0.50 ends at 0.413, still class 1; 0.42 is wrong
    x = images.float() / 255
    moved = perturbed(Threshold(0.45), x, data.labels, cfg) - x
    assert moved.flatten(1).norm(dim=1).max() <= 0.6 + 1e-5


def test_suggested_budget_grows_with_the_image(stolen, tmp_path):
    card = import_model(stolen, signs_zip(tmp_path / "clean.zip", 2), STANDARD)
    assert defense_config("npd", card).rho == 3.0
    values = json.loads((card.folder / "data.json").read_text())
    assert (values["train_images"], values["test_images"]) == (12, 12)
