"""The store as a viewer reads it: a configuration whose parts are there, and a server of one folder on one machine."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def predicted(stores, ridge):
    """A store with a layer of Ridge."""
    import stpredict as stp

    stp.tl.predict(stores[0], ridge, shapes_key="spots", progress=False)
    return stores[0]


@pytest.fixture
def configuration():
    from stpredict.cli._view_config import configuration

    return configuration


@pytest.fixture
def server(predicted, configuration):
    """A running server: (function that asks for a path, port)."""
    from stpredict.cli._view_server import make_server

    server = make_server(predicted, configuration(predicted))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]

    def ask(path: str, method: str = "GET", **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    yield ask, port
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_it_names_is_in_the_store(predicted, configuration):
    found = configuration(predicted)
    (file,) = found["datasets"][0]["files"]
    options = file["options"]
    paths = [options["image"]["path"], options["obsSpots"]["path"], options["obsSpots"]["tablePath"]]
    paths += [options["obsFeatureMatrix"]["path"], options["obsFeatureMatrix"]["initialFeatureFilterPath"]]
    assert paths[3:] == ["tables/table/layers/ridge", "tables/table/var/ridge"]
    assert [path for path in paths if not (predicted / path / "zarr.json").is_file()] == []


def test_it_begins_with_the_best_gene(predicted, configuration):
    from spatialdata import read_zarr

    table = read_zarr(predicted).tables["table"]
    (gene,) = configuration(predicted)["coordinationSpace"]["featureSelection"]["A"]
    known = table.var["ridge_val_pcc"]
    assert known[gene] == np.nanmax(known) if known.notna().any() else gene in table.var_names[table.var["ridge"]]
    second = table.var_names[table.var["ridge"]][1]
    assert configuration(predicted, gene=second)["coordinationSpace"]["featureSelection"]["A"] == [second]


def scopes(value, found):
    """All names of scopes below a value."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        found |= {each} if isinstance(each, str) else scopes(each, found)
    return found


def test_every_scope_that_a_view_names_is_there(predicted, configuration):
    found = configuration(predicted)
    space = found["coordinationSpace"]
    for view in found["layout"]:
        for kind, names in view["coordinationScopes"].items():
            for name in names if isinstance(names, list) else [names]:
                assert name in space[kind]
    for layers in space["metaCoordinationScopes"].values():
        for kind, names in layers.items():
            assert set(names) <= set(space[kind])
    for layers in space["metaCoordinationScopesBy"].values():
        for of in layers.values():
            for kind, names in of.items():
                assert scopes(names, set()) <= set(space[kind])


def test_views_do_not_overlap(predicted, configuration):
    cells = np.zeros((12, 12), int)
    for view in configuration(predicted)["layout"]:
        cells[view["y"] : view["y"] + view["h"], view["x"] : view["x"] + view["w"]] += 1
    assert (cells == 1).all()


@pytest.mark.parametrize("kind", ["spots", "tissue", "no table"])
def test_it_is_valid_by_the_schema_of_vitessce(predicted, configuration, kind):
    """The schema is Vitessce's own, `config-1.0.18.schema.json`; the variable names the file (docs/report.md)."""
    file = os.environ.get("STPREDICT_VITESSCE_SCHEMA")
    if file is None:
        pytest.skip("STPREDICT_VITESSCE_SCHEMA does not name Vitessce's schema (docs/report.md)")
    jsonschema = pytest.importorskip("jsonschema")
    found = configuration(predicted)
    if kind == "tissue":
        from stpredict.cli._view_config import _views

        options = found["datasets"][0]["files"][0]["options"]
        options["obsSegmentations"] = options.pop("obsSpots")
        found = _views(options, "obsSegmentations", ["A"], name="a")
    elif kind == "no table":
        from stpredict.cli._view_config import _views

        found = _views({"image": {"path": "images/image"}}, None, None, name="a")
    jsonschema.validate(found, json.loads(Path(file).read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"layout": 5}, json.loads(Path(file).read_text()))


def test_it_serves_the_bytes_of_the_store_and_where_it_is(server, predicted):
    ask, port = server
    answer, content = ask("/store.zarr/zarr.json")
    assert (answer.status, content) == (200, (predicted / "zarr.json").read_bytes())
    assert answer.getheader("Access-Control-Allow-Origin") == "https://vitessce.io"
    answer, content = ask("/config.json")
    (file,) = json.loads(content)["datasets"][0]["files"]
    assert file["url"] == f"http://127.0.0.1:{port}/store.zarr"
    with urllib.request.urlopen(f"{file['url']}/images/image/zarr.json") as answer:
        assert json.load(answer)["node_type"] == "group"


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-4", slice(0, 5)),
        ("bytes=3-", slice(3, None)),
        ("bytes=-6", slice(-6, None)),
        ("bytes=4-9999999", slice(4, None)),
    ],
)
def test_parts_of_files_are_read(server, predicted, asked, part):
    answer, content = server[0]("/store.zarr/zarr.json", Range=asked)
    whole = (predicted / "zarr.json").read_bytes()
    assert (answer.status, content) == (206, whole[part])
    start, stop, _ = part.indices(len(whole))
    assert answer.getheader("Content-Range") == f"bytes {start}-{stop - 1}/{len(whole)}"
    answer, content = server[0]("/store.zarr/zarr.json", "HEAD", Range=asked)
    assert (answer.status, content, answer.getheader("Content-Length")) == (206, b"", str(len(whole[part])))


def test_what_is_not_there_and_what_cannot_be_read(server):
    ask, _ = server
    assert ask("/store.zarr/images/image/s0/c/9/9/9")[0].status == 404
    assert ask("/store.zarr/zarr.json", Range="bytes=9999999-")[0].status == 416
    assert ask("/store.zarr/zarr.json", Range="lines=1-2")[0].status == 416
    assert ask("/store.zarr/zarr.json", "OPTIONS")[0].status == 204


@pytest.mark.parametrize(
    "path", ["/store.zarr/../b.zarr/zarr.json", "/store.zarr/%2e%2e/b.zarr/zarr.json", "/zarr.json", "/"]
)
def test_nothing_outside_the_store_is_served(server, predicted, path):
    assert (predicted.parent / "b.zarr" / "zarr.json").is_file()
    answer, content = server[0](path)
    assert (answer.status, content) == (404, b"")


def test_a_link_out_of_the_store_is_not_followed(server, predicted):
    (predicted / "out.json").symlink_to(predicted.parent / "b.zarr" / "zarr.json")
    assert server[0]("/store.zarr/out.json")[0].status == 404


def test_another_name_for_this_address_is_refused(server):
    assert server[0]("/store.zarr/zarr.json", Host="evil.example:80")[0].status == 403


def test_a_port_in_use_is_said(server, predicted, run):
    _, port = server
    status, _, said = run("view", predicted, "--port", port, "--no-browser")
    assert status == 1
    assert f"port {port} of 127.0.0.1 cannot be had" in said and "--port 0" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "rigde"], "no layer 'rigde'. Closest: 'ridge'"),
        (["--gene", "NOPE"], "no gene 'NOPE'"),
        (["--coordinate-system", "mm"], "no transformation to --coordinate-system 'mm'"),
        (["--image-key", "imgae"], "no image 'imgae'"),
        (["--shapes-key", "spot"], "no shapes 'spot'"),
        (["--table-name", "tabel"], "no table 'tabel'"),
        (["--port", "70000"], "port 70000"),
    ],
)
def test_what_is_not_there_is_named(predicted, run, options, message):
    status, _, said = run("view", predicted, "--no-browser", *options)
    assert status == 1 and message in said and len(said.strip().splitlines()) == 1


def test_a_store_that_is_not_there(run):
    status, _, said = run("view", "no.zarr")
    assert status == 1 and "no store 'no.zarr'" in said


def test_the_command_serves_until_it_is_interrupted(predicted, run, monkeypatch, tmp_path):
    from http.server import ThreadingHTTPServer

    def interrupted(self):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", opened.append)
    status, printed, _ = run("view", predicted, "--config", tmp_path / "deep" / "config.json")
    assert status == 0 and "needs a network" in printed and "ended." in printed
    written = json.loads((tmp_path / "deep" / "config.json").read_text())
    (file,) = written["datasets"][0]["files"]
    assert file["url"].startswith("http://127.0.0.1:") and file["url"] in printed
    assert [page.startswith("https://vitessce.io/#?url=http%3A%2F%2F127.0.0.1") for page in opened] == [True]
