"""Fetching from a server on this machine; nothing here leaves it."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest

from stpredict._fetch import Remote, data_dir, fetch

BODY = b"counts"
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and keeps a list of what was asked for."""

    def __init__(self, *args, asked: list[str], **kwargs):
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, list of paths that were asked for); serves /up.tsv, the cache is a fresh folder."""
    monkeypatch.setenv("STPREDICT_DATA_DIR", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "up.tsv").write_bytes(BODY)
    asked: list[str] = []
    handler = partial(Handler, directory=str(tmp_path / "www"), asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def test_fetched_once_and_kept_under_our_name(server, tmp_path):
    address, asked = server
    registry = {"A1.tsv": Remote(f"{address}/up.tsv", SHA256)}
    path = fetch("A1.tsv", registry, folder="set")
    assert path == tmp_path / "cache" / "set" / "A1.tsv"
    assert path.read_bytes() == BODY
    assert fetch("A1.tsv", registry, folder="set") == path
    assert asked == ["/up.tsv"]


def test_a_local_file_that_has_changed_is_fetched_again(server):
    address, asked = server
    registry = {"A1.tsv": Remote(f"{address}/up.tsv", SHA256)}
    fetch("A1.tsv", registry, folder="set").write_bytes(b"changed")
    assert fetch("A1.tsv", registry, folder="set").read_bytes() == BODY
    assert asked == ["/up.tsv", "/up.tsv"]


def test_a_file_with_another_checksum_is_refused_and_not_kept(server, tmp_path):
    address, _ = server
    registry = {"A1.tsv": Remote(f"{address}/up.tsv", "0" * 64)}
    with pytest.raises(ValueError, match="(?i)sha256"):
        fetch("A1.tsv", registry, folder="set")
    assert not list((tmp_path / "cache").rglob("*.tsv"))


def test_a_name_without_checksum(server):
    with pytest.raises(KeyError, match="no checksum is known for 'B1.tsv'.*A1.tsv"):
        fetch("B1.tsv", {"A1.tsv": Remote("http://127.0.0.1:9/x", SHA256)}, folder="set")
    assert server[1] == []


def test_what_cannot_be_had(server):
    address, _ = server
    registry = {"A1.tsv": Remote(f"{address}/gone.tsv", SHA256)}
    with pytest.raises(OSError, match=f"A1.tsv could not be fetched from {address}/gone.tsv.*404.*STPREDICT_DATA_DIR"):
        fetch("A1.tsv", registry, folder="set")


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("STPREDICT_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.delenv("STPREDICT_DATA_DIR")
    assert data_dir() == pooch.os_cache("stpredict")
