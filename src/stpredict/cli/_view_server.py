"""A server of one store on the loopback address, for a viewer in the browser of the same machine."""

from __future__ import annotations

import json
import re
import webbrowser
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stpredict.cli._view_config import URL

HOST = "127.0.0.1"
VIEWER = "https://vitessce.io"
PIECE = 2**20  # bytes that are sent together


def serve(store: Path, configuration: dict[str, Any], *, port: int, browser: bool, config: Path | None) -> None:
    """Serve until Ctrl-C, and say where.

    Raises OSError where the port is taken.
    """
    with make_server(store, configuration, port=port) as server:
        address = f"http://{HOST}:{server.server_address[1]}"
        if config is not None:
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(json.dumps(placed(configuration, f"{address}/store.zarr"), indent=1) + "\n")
            print(f"configuration: {config}")
        page = f"{VIEWER}/#?url={quote(address + '/config.json', safe='')}"
        print(f"store:  {address}/store.zarr (this machine alone)\nviewer: {page} (needs a network)\nCtrl-C ends it.")
        if browser:
            webbrowser.open(page)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended.")


def make_server(store: Path, configuration: dict[str, Any], *, port: int = 0) -> ThreadingHTTPServer:
    """A server that offers ``/config.json`` and the files of the store below ``/store.zarr``; port 0: any free one."""
    try:
        return StoreServer((HOST, port), partial(StoreHandler, store.resolve(), configuration))
    except (OSError, OverflowError) as error:
        raise OSError(
            f"port {port} of {HOST} cannot be had ({error}). Pass another --port, or --port 0 for any that is free."
        ) from error


def placed(configuration: dict[str, Any], url: str) -> dict[str, Any]:
    """The configuration with the address of the store in its place."""
    made: dict[str, Any] = json.loads(json.dumps(configuration).replace(json.dumps(URL), json.dumps(url)))
    return made


class StoreServer(ThreadingHTTPServer):
    """A thread a request; a port that another one listens on is refused, not shared."""

    allow_reuse_port = False


class StoreHandler(BaseHTTPRequestHandler):
    """Files of one folder and a configuration, to be read by the viewer's pages and by pages of this server."""

    protocol_version = "HTTP/1.1"

    def __init__(self, store: Path, configuration: dict[str, Any], *args: Any) -> None:
        self.store, self.configuration = store, configuration
        super().__init__(*args)

    def do_GET(self) -> None:
        """A file, or a part of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """How large a file is."""
        self._answer(body=False)

    def do_OPTIONS(self) -> None:
        """What a page of the viewer may ask; browsers ask this first."""
        self._head(HTTPStatus.NO_CONTENT, {"Content-Length": "0"})

    def log_message(self, *args: Any) -> None:
        """Nothing: a viewer asks for thousands of chunks."""

    def _answer(self, *, body: bool) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            # another name for this address is a page that wants to read what is not meant for it
            return self._error(HTTPStatus.FORBIDDEN)
        path = unquote(urlsplit(self.path).path)
        if path == "/config.json":
            return self._send(self._config(), body=body)
        file = self._file(path)
        if file is None:
            return self._error(HTTPStatus.NOT_FOUND)  # a chunk that is not there holds the fill value
        size = file.stat().st_size
        part = _range(self.headers.get("Range"), size)
        if part is None:
            return self._error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
        start, stop = part
        headers = {"Content-Length": str(stop - start), "Content-Type": "application/octet-stream"}
        whole = self.headers.get("Range") is None
        if not whole:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT, headers)
        if body:
            self._copy(file, start, stop)
        return None

    def _file(self, path: str) -> Path | None:
        """The file of a path below the store; None for what is not there, or outside."""
        if not path.startswith("/store.zarr/"):
            return None
        file = (self.store / path.removeprefix("/store.zarr/")).resolve()
        return file if file.is_relative_to(self.store) and file.is_file() else None

    def _config(self) -> bytes:
        url = f"http://{self.headers['Host']}/store.zarr"
        return json.dumps(placed(self.configuration, url)).encode()

    def _send(self, content: bytes, *, body: bool) -> None:
        self._head(HTTPStatus.OK, {"Content-Length": str(len(content)), "Content-Type": "application/json"})
        if body:
            self.wfile.write(content)

    def _copy(self, file: Path, start: int, stop: int) -> None:
        with file.open("rb") as source:
            source.seek(start)
            while start < stop and (piece := source.read(min(PIECE, stop - start))):
                self.wfile.write(piece)
                start += len(piece)

    def _error(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": "0"} | (headers or {}))

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        allowed = {
            "Access-Control-Allow-Origin": VIEWER, "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": "Range", "Access-Control-Expose-Headers": "Content-Range, Content-Length",
            "Access-Control-Allow-Private-Network": "true", "Accept-Ranges": "bytes", "Cache-Control": "no-store",
        }  # fmt: skip
        for name, value in (headers | allowed).items():
            self.send_header(name, value)
        self.end_headers()


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a Range asks for; None where it cannot be met."""
    if header is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    return (start, stop) if start < stop else None
