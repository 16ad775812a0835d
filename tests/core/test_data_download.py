from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from npd_core.data import archives, download
from npd_core.data.download import Archive, fetch, get_dataset_files
from npd_core.data.load import load_dataset
from npd_core.errors import DataMissingError, StorageError, UnknownNameError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, with ranges; `server.cut` ends the first answers early, `server.status`
    refuses."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        content = server.files.get(self.path)
        if server.status or content is None:
            self.send_error(server.status or 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "BLOCK", 1 << 14)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    for name, value in {
        "files": {"/x.bin": CONTENT},
        "requests": [],
        "cut": [],
        "status": 0,
        "ranges": True,
    }.items():
        setattr(http, name, value)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    http.url = f"http://127.0.0.1:{http.server_port}"
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetched_verified_and_reported(server, tmp_path):
    seen = []
    size = fetch(
        f"{server.url}/x.bin", MD5, tmp_path / "x.bin", lambda done, total: seen.append((done, total))
    )
    assert size == len(CONTENT)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["x.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 5


def test_a_good_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert server.requests == []


def test_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:120_000])
    seen = []
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin", lambda done, total: seen.append((done, total)))
    assert server.requests == ["bytes=120000-"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert seen[0][0] > 120_000
    assert {total for _, total in seen} == {len(CONTENT)}


def test_complete_but_not_yet_renamed(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert server.requests == ["bytes=300000-"]
    assert names(tmp_path) == ["x.bin"]


def test_lost_connections_are_taken_up_again(server, tmp_path):
    server.cut = [100_000, 50_000]
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_connection_that_keeps_breaking_leaves_what_came(server, tmp_path):
    server.cut = [1000] * download.ATTEMPTS
    with pytest.raises(DataMissingError, match=r"127\.0\.0\.1"):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert (tmp_path / "x.bin.part").stat().st_size == 4000
    server.cut = []
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:1000])
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1000, 300_000, 400_000])
def test_wrong_leftover_is_dropped_and_fetched_whole(server, tmp_path, size):
    (tmp_path / "x.bin.part").write_bytes(b"z" * size)
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert server.requests[-1] is None


def test_wrong_file_is_replaced(server, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"old")
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    server.files["/x.bin"] = CONTENT[:-1] + b"?"
    with pytest.raises(DataMissingError, match="Pictures"):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin", title="Pictures")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError("bad record mac")])
def test_trouble_on_the_line_is_not_taken_for_the_disk(server, tmp_path, monkeypatch, error):
    import http.client

    def read(self, amount):
        raise error

    monkeypatch.setattr(http.client.HTTPResponse, "read", read)
    with pytest.raises(DataMissingError, match=str(error)):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")


def test_refused_by_the_server(server, tmp_path):
    with pytest.raises(DataMissingError, match=r"Pictures: 127\.0\.0\.1:\d+ .*404"):
        fetch(f"{server.url}/other.bin", MD5, tmp_path / "x.bin", title="Pictures")
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(DataMissingError, match="503"):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert len(server.requests) == 1 + download.ATTEMPTS


def test_no_network(server, tmp_path, monkeypatch):
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DataMissingError, match=rf"127\.0\.0\.1:{port}") as caught:
        fetch(f"http://127.0.0.1:{port}/x.bin", MD5, tmp_path / "x.bin")
    assert "\n" not in str(caught.value)


def test_interrupted_by_the_person(server, tmp_path):
    def stop(done, total):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin", stop)
    kept = (tmp_path / "x.bin.part").stat().st_size
    assert kept > 100_000
    assert not (tmp_path / "x.bin").exists()
    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
    assert server.requests[-1] == f"bytes={kept}-"


def test_second_download_of_the_same_file_is_refused(server, tmp_path):
    refused = []

    def meanwhile(done, total):
        if not refused:
            with pytest.raises(DataMissingError, match=r"x\.bin") as caught:
                fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")
            refused.append(caught)

    fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin", meanwhile)
    assert refused
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


# Whole data sets, made small and served from here.


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NPD_DATA_DIR", str(tmp_path))
    return tmp_path


def served(server, path: str, content: bytes, to: str, unpacks_to: str = "") -> Archive:
    server.files[path] = content
    return Archive(f"{server.url}{path}", hashlib.md5(content).hexdigest(), len(content), to, unpacks_to)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(buffer, "PPM")
    return buffer.getvalue()


def test_tiny_imagenet(server, data_dir, monkeypatch):
    wnids = [f"n{k:08d}" for k in range(200)]
    files = {
        "wnids.txt": "\n".join(wnids).encode(),
        "words.txt": "\n".join(f"{w}\tthing" for w in wnids).encode(),
        f"train/{wnids[3]}/images/{wnids[3]}_0.JPEG": picture(),
        "val/val_annotations.txt": f"val_0.JPEG\t{wnids[4]}\n".encode(),
        "val/images/val_0.JPEG": picture(),
    }
    content = zipped({f"tiny-imagenet-200/{name}": data for name, data in files.items()})
    archive = served(server, "/tiny.zip", content, "tiny-imagenet-200.zip")
    monkeypatch.setitem(download.ARCHIVES, "tiny_imagenet", (archive,))
    seen = []
    found = get_dataset_files("tiny_imagenet", lambda done, total: seen.append((done, total)))
    assert found.available
    assert seen[-1] == (archive.size, archive.size)
    assert load_dataset("tiny_imagenet", "test").labels.tolist() == [4]
    assert load_dataset("tiny_imagenet", "train").labels.tolist() == [3]
    asked = len(server.requests)
    assert get_dataset_files("tiny_imagenet").available  # nothing more to fetch
    assert len(server.requests) == asked


def test_gtsrb_in_three_archives_with_one_progress(server, data_dir, monkeypatch):
    table = b"Filename;Width;ClassId\n00000.ppm;64;7\n"
    parts = (
        served(
            server,
            "/a.zip",
            zipped({"GTSRB/Final_Training/Images/00005/0.ppm": picture()}),
            f"gtsrb/{archives.GTSRB_TRAIN_ZIP}",
        ),
        served(
            server,
            "/b.zip",
            zipped({"GTSRB/Final_Test/Images/00000.ppm": picture()}),
            f"gtsrb/{archives.GTSRB_TEST_ZIP}",
        ),
        served(server, "/c.zip", zipped({archives.GTSRB_TRUTH: table}), f"gtsrb/{archives.GTSRB_TRUTH_ZIP}"),
    )
    monkeypatch.setitem(download.ARCHIVES, "gtsrb", parts)
    seen = []
    get_dataset_files("gtsrb", lambda done, total: seen.append((done, total)))
    total = sum(part.size for part in parts)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert load_dataset("gtsrb", "train").labels.tolist() == [5]
    assert load_dataset("gtsrb", "test").labels.tolist() == [7]


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_cifar10_is_unpacked_where_torchvision_looks(server, data_dir, monkeypatch):
    files = {f"cifar-10-batches-py/{name}": b"x" for name in ("data_batch_1", "test_batch", "batches.meta")}
    archive = served(server, "/c.tar.gz", tarred(files), "cifar-10-python.tar.gz", "cifar-10-batches-py")
    monkeypatch.setitem(download.ARCHIVES, "cifar10", (archive,))
    assert get_dataset_files("cifar10").available
    assert names(data_dir / "torchvision") == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_archive_that_climbs_out_of_its_folder_is_refused(server, data_dir, monkeypatch):
    content = tarred({"cifar-10-batches-py/data_batch_1": b"x", "../../evil": b"x"})
    archive = served(server, "/c.tar.gz", content, "cifar-10-python.tar.gz", "cifar-10-batches-py")
    monkeypatch.setitem(download.ARCHIVES, "cifar10", (archive,))
    with pytest.raises(StorageError, match="cifar-10-python"):
        get_dataset_files("cifar10")
    assert names(data_dir) == ["torchvision"]
    assert names(data_dir / "torchvision") == ["cifar-10-python.tar.gz"]


def test_too_little_room_is_said_before_anything_is_fetched(server, data_dir, monkeypatch):
    archive = served(server, "/tiny.zip", CONTENT, "tiny-imagenet-200.zip")
    monkeypatch.setitem(download.ARCHIVES, "tiny_imagenet", (archive,))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1000))
    with pytest.raises(StorageError, match=r"0 MB.*NPD_DATA_DIR"):
        get_dataset_files("tiny_imagenet")
    assert server.requests == []


def test_disk_that_fills_up_on_the_way(server, tmp_path):
    def full(done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=re.escape(str(tmp_path))):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin", full)
    assert (tmp_path / "x.bin.part").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="NPD_DATA_DIR"):
        fetch(f"{server.url}/x.bin", MD5, tmp_path / "x.bin")


def test_folder_that_is_a_file(data_dir):
    (data_dir / "torchvision").write_text("")
    with pytest.raises(StorageError, match="NPD_DATA_DIR"):
        get_dataset_files("gtsrb")


def test_nothing_to_do_for_signs():
    assert get_dataset_files("signs").available


def test_unknown_name():
    with pytest.raises(UnknownNameError, match="'imagenet'"):
        get_dataset_files("imagenet")


def test_every_data_set_has_its_archives():
    assert set(download.ARCHIVES) == {"signs", "cifar10", "gtsrb", "tiny_imagenet"}
    for parts in download.ARCHIVES.values():
        for part in parts:
            assert len(part.md5) == 32
            assert part.url.startswith(("http://", "https://"))
            assert part.size > 10_000
