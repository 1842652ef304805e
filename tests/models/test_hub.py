"""Models on a hub: pushed to and loaded from a server on this machine, and what is said where that does not work."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from ..tl.conftest import colour_sdata
from .hub_server import TOKEN, Hub, Repository

GENES = ("red", "green", "blue")
NAME = "owner/colours"


@pytest.fixture(scope="module")
def trained():
    """A Ridge that knows the colours."""
    import stpredict as stp

    model = stp.models.Ridge(GENES)
    sdata = colour_sdata(0)
    sdata.attrs |= {"species": "human", "organ": "breast", "stain": "H&E", "patient": "P1"}
    stp.tl.train(sdata, model, val=0.3, progress=False, licence="CC-BY-4.0", target="as_is")
    return model


@pytest.fixture
def model(trained, tmp_path):
    """A copy of it that was never saved."""
    import stpredict as stp

    trained.save(tmp_path / "copy", overwrite=True)
    copy = stp.models.load(tmp_path / "copy")
    copy.loaded_from = None
    return copy


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub where somebody is logged in, with an empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def _empty_cache(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def _same(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)


def test_what_was_pushed_is_loaded(hub, model):
    import stpredict as stp

    name = model.push_to_hub(NAME, version="1.2.0")
    commit = hub.repositories[NAME].branches["main"]
    assert name == model.loaded_from == f"hf://{NAME}@{commit}"
    assert model.revision == commit
    assert hub.repositories[NAME].private
    assert sorted(hub.repositories[NAME].commits[commit]) == ["README.md", "card.json", "model.safetensors"]
    loaded = stp.models.load(f"hf://{NAME}")
    assert _same(loaded, model)
    assert loaded.card == model.card
    assert loaded.card.version == "1.2.0"
    assert (loaded.loaded_from, loaded.revision) == (name, commit)


def test_a_prediction_takes_the_name_and_keeps_the_commit(hub, model):
    import stpredict as stp

    name = model.push_to_hub(NAME)
    sdata, same = colour_sdata(1), colour_sdata(1)
    stp.tl.predict(sdata, f"hf://{NAME}@main", progress=False)
    stp.tl.predict(same, model, progress=False)
    np.testing.assert_array_equal(sdata.tables["table"].layers["ridge"], same.tables["table"].layers["ridge"])
    record = sdata.tables["table"].uns["stpredict"]["ridge"]
    assert record["model_path"] == name
    assert record["revision"] == model.revision
    stp.tl.embed(sdata, f"hf://{NAME}", progress=False)
    assert "X_ridge" in sdata.tables["table"].obsm


def test_revisions_are_branches_tags_and_commits(hub, model, tmp_path):
    import stpredict as stp

    first = model.push_to_hub(NAME)
    model.card = dataclasses.replace(model.card, seed=7)
    second = model.push_to_hub(NAME, revision="next/one")
    repository = hub.repositories[NAME]
    repository.tags["v1"] = repository.branches["main"]
    assert stp.models.load(f"hf://{NAME}@next/one").loaded_from == second != first
    assert stp.models.load(f"hf://{NAME}@v1").loaded_from == first
    assert stp.models.load(first).card.seed == 0
    assert stp.models.load(second).card.seed == 7


def test_a_commit_in_the_cache_asks_nobody(hub, model):
    import stpredict as stp

    name = model.push_to_hub(NAME)
    stp.models.load(name)
    hub.asked.clear()
    assert stp.models.load(name).loaded_from == name
    assert hub.asked == []


def test_a_download_that_breaks_off_is_said_and_done_again(hub, model):
    import stpredict as stp

    model.push_to_hub(NAME)
    hub.cut = "model.safetensors"
    with pytest.raises(ConnectionError):
        stp.models.load(f"hf://{NAME}")
    hub.cut = None
    assert _same(stp.models.load(f"hf://{NAME}"), model)


def test_the_newest_is_taken_where_the_hub_answers(hub, model):
    import stpredict as stp

    first = model.push_to_hub(NAME)
    assert stp.models.load(f"hf://{NAME}").loaded_from == first
    model.card = dataclasses.replace(model.card, seed=7)
    second = model.push_to_hub(NAME)
    assert stp.models.load(f"hf://{NAME}").loaded_from == second != first


def test_weights_that_were_changed_are_refused(hub, model, tmp_path):
    import stpredict as stp

    model.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    weights = bytearray(repository.commits[repository.branches["main"]]["model.safetensors"])
    weights[-1] ^= 1
    changed = repository.commit("main", {"model.safetensors": bytes(weights)})
    with pytest.raises(ValueError, match="is not the file its card describes: sha256") as caught:
        stp.models.load(f"hf://{NAME}")
    (note,) = caught.value.__notes__
    assert f"This is hf://{NAME}@{changed} of {hub.url}. If it was damaged here, remove {tmp_path / 'cache'}" in note


def test_weights_that_were_damaged_in_the_cache_are_refused(hub, model, tmp_path):
    import stpredict as stp

    name = model.push_to_hub(NAME)
    stp.models.load(name)
    (weights,) = (tmp_path / "cache").glob("*/snapshots/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    with pytest.raises(ValueError, match="is not the file its card describes"):
        stp.models.load(name)
    shutil.rmtree(weights.parents[2])
    assert _same(stp.models.load(name), model)


@pytest.mark.parametrize("how", ["offline", "no server", "out of order"])
def test_without_the_hub_the_cache_serves(hub, model, monkeypatch, how, tmp_path):
    import stpredict as stp

    name = model.push_to_hub(NAME)
    stp.models.load(f"hf://{NAME}")
    if how == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(socket.socket, "connect", _shut)
    elif how == "no server":
        hub.shutdown()
        hub.server_close()
    else:
        hub.status = 503
    for asked in (f"hf://{NAME}", name):
        assert stp.models.load(asked).loaded_from == name
    _empty_cache(tmp_path)
    why = {"offline": "HF_HUB_OFFLINE is set", "no server": "cannot be reached", "out of order": "status 503"}[how]
    with pytest.raises(ConnectionError, match=rf"hf://{NAME}@main is not in the cache \(.*{why}.*pass a folder"):
        stp.models.load(f"hf://{NAME}")


def _shut(*_args, **_kwargs):
    raise AssertionError("a socket was opened")


def test_a_card_that_is_cached_without_weights_is_no_model(hub, model, monkeypatch):
    import stpredict as stp

    model.push_to_hub(NAME)
    assert stp.models.read_card(f"hf://{NAME}") == model.card
    assert not any(path.endswith("model.safetensors") for _, path in hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert stp.models.read_card(f"hf://{NAME}") == model.card
    with pytest.raises(ConnectionError, match="is not in the cache"):
        stp.models.load(f"hf://{NAME}")


def test_a_name_that_is_not_there(hub):
    import stpredict as stp

    with pytest.raises(FileNotFoundError, match=r"there is no hf://owner/nothing at http://127.*or it is private"):
        stp.models.load("hf://owner/nothing")


def test_a_revision_that_is_not_there(hub, model):
    import stpredict as stp

    model.push_to_hub(NAME)
    with pytest.raises(FileNotFoundError, match=rf"hf://{NAME} has no revision 'v9'; there are \['main'\]"):
        stp.models.load(f"hf://{NAME}@v9")


def test_a_gated_repository(hub, monkeypatch):
    import stpredict as stp

    hub.repositories["owner/gated"] = Repository(gated=True)
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(
        PermissionError, match=r"hf://owner/gated@main is gated: accept its terms at http.*/owner/gated"
    ):
        stp.models.load("hf://owner/gated")


def test_a_repository_of_something_else(hub):
    import stpredict as stp

    hub.repositories["owner/text"] = repository = Repository(library="transformers")
    repository.commit("main", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(
        ValueError, match=r"no model of stpredict.*\['config.json', 'pytorch_model.bin'\] of transformers"
    ):
        stp.models.load("hf://owner/text")


def test_a_card_without_weights(hub, model):
    import stpredict as stp

    model.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    del repository.commits[repository.branches["main"]]["model.safetensors"]
    with pytest.raises(ValueError, match=r"it holds \['README.md', 'card.json'\]"):
        stp.models.load(f"hf://{NAME}")


def _with_card(hub, **fields):
    repository = hub.repositories[NAME]
    card = json.loads(repository.commits[repository.branches["main"]]["card.json"]) | fields
    repository.commit("main", {"card.json": json.dumps(card).encode()})


def test_a_card_of_a_newer_format_costs_no_weights(hub, model):
    import stpredict as stp

    model.push_to_hub(NAME)
    _with_card(hub, format="stpredict-card/2", versions={"stpredict": "9.1"})
    said = (
        r"newer format, 'stpredict-card/2'; this version reads 'stpredict-card/1'. It says that stpredict 9.1 made it"
    )
    with pytest.raises(ValueError, match=said):
        stp.models.load(f"hf://{NAME}")
    assert not any(path.endswith("model.safetensors") for method, path in hub.asked if method != "POST")


def test_a_card_with_fields_of_a_newer_version(hub, model):
    import stpredict as stp

    model.push_to_hub(NAME)
    _with_card(hub, thickness_um=5.0, versions={"stpredict": "0.9"})
    with pytest.raises(ValueError, match=r"unknown fields \['thickness_um'\]. It says that stpredict 0.9 made it"):
        stp.models.load(f"hf://{NAME}")


def test_a_card_that_is_no_card_in_size(hub, model):
    import stpredict as stp
    from stpredict._schema import LARGEST_JSON

    model.push_to_hub(NAME)
    hub.repositories[NAME].commit("main", {"card.json": b" " * (LARGEST_JSON + 1)})
    with pytest.raises(ValueError, match="which no card has"):
        stp.models.load(f"hf://{NAME}")
    assert not any(method == "GET" for method, _ in hub.asked)


@pytest.mark.parametrize("name", [
    "hf://", "hf://colours", "hf://owner/", "hf://a/b/c", "hf://owner/../x", "hf://owner/x@", "hf://owner/x@../../etc",
    "hf://owner/x y", "hf:///x", "hf://owner/a--b",
])  # fmt: skip
def test_what_is_no_name_asks_nobody(hub, name):
    import stpredict as stp

    with pytest.raises(ValueError, match="is no repository of a hub|is no revision"):
        stp.models.load(name)
    assert hub.asked == []


def test_a_record_asks_no_hub(hub, tmp_path, monkeypatch):
    import stpredict as stp

    hub.repositories[NAME] = Repository()
    with pytest.raises(FileNotFoundError, match="no hub is asked for a name that stands in a record"):
        stp.models.load_recorded(f"hf://{NAME}")
    assert hub.asked == []


def test_a_record_is_served_by_the_cache(hub, model):
    import stpredict as stp

    name = model.push_to_hub(NAME)
    stp.models.load(name)
    hub.asked.clear()
    assert stp.models.load_recorded(name).loaded_from == name
    assert hub.asked == []


def test_pushing_without_leave(hub, model, monkeypatch):
    with pytest.raises(PermissionError, match="does not let you write hf://others/colours@main .*rights"):
        model.push_to_hub("others/colours")
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(PermissionError, match="Log in with `hf auth login`, or set HF_TOKEN"):
        model.push_to_hub(NAME)
    assert model.loaded_from is None


def test_pushing_where_there_is_no_hub(hub, model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        model.push_to_hub(NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        model.push_to_hub(NAME)


@pytest.mark.parametrize(("settings", "said"), [
    ({"repo_id": "colours"}, "'colours' is no repository"),
    ({"repo_id": 5}, "repo_id=5 must be a text"),
    ({"revision": "a b"}, "is no revision"),
    ({"revision": "0" * 40}, "is a commit, which nothing can be added to"),
    ({"version": "latest"}, "version='latest' is no version"),
    ({"private": "no"}, "private='no' must be true or false"),
])  # fmt: skip
def test_a_push_that_is_refused_at_once(hub, model, settings, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations are checked in tests alone
    with pytest.raises(ValueError, match=said):
        model.push_to_hub(**{"repo_id": NAME} | settings)
    assert hub.asked == []


def test_a_model_that_was_never_trained_is_not_pushed(hub):
    import stpredict as stp

    with pytest.raises(ValueError, match="was never trained"):
        stp.models.Ridge(GENES).push_to_hub(NAME)
    assert hub.asked == []


def test_the_command_line_takes_the_name(hub, model, capsys):
    from stpredict.cli import app

    model.push_to_hub(NAME, version="2.0")
    app(["models", f"hf://{NAME}"], result_action="return_value")
    assert re.search(r"^  version +2\.0$", capsys.readouterr().out, re.MULTILINE)
