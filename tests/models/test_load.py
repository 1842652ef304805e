"""Loading: a changed byte, missing keys, a foreign card, a name that is not there."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest


@pytest.fixture
def saved(build, colour_section, tmp_path):
    from stpredict._training import TrainOptions, fit

    model = build("Ridge")
    fit(
        model,
        [colour_section(0)],
        [],
        TrainOptions(device="cpu", progress=False),
        sections=("colour0",),
        licence="BSD-3-Clause",
    )
    model.save(tmp_path / "m")
    return tmp_path / "m"


def _change(folder, **fields):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | fields))


def test_a_changed_byte_is_seen(saved):
    from stpredict import models

    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not the file its card describes: sha256"):
        models.load(saved)


def test_missing_and_unknown_tensors_are_named(saved):
    from safetensors.torch import load_file, save_file

    from stpredict import models
    from stpredict._card import sha256

    state = load_file(saved / "model.safetensors")
    state["something"] = state.pop("centre")
    save_file(state, saved / "model.safetensors")
    _change(saved, weights_sha256=sha256(saved / "model.safetensors"))
    with pytest.raises(ValueError, match=r"missing tensors \['centre'\] \(1\), unknown tensors \['something'\] \(1\)"):
        models.load(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "somebody-else/3"}, "is not a card of stpredict: its format is 'somebody-else/3'"),
        ({"model": "Oracle"}, "model is 'Oracle', which is not known here: .*register.*entry point.*model_class="),
        ({"colour": "red"}, r"unknown fields \['colour'\]"),
        (
            {"config": {"genes": ["red", "green", "blue"], "mpp": 1.0, "depth": 3}},
            r"fields that RidgeConfig does not know: \['depth'\]",
        ),
    ],
)
def test_a_foreign_card_is_refused(saved, fields, message):
    from stpredict import models

    _change(saved, **fields)
    with pytest.raises(ValueError, match=message):
        models.load(saved)


def test_what_is_not_there_is_said(saved, tmp_path):
    from stpredict import models

    with pytest.raises(FileNotFoundError, match="no model 'pixnet-her2'"):
        models.load("pixnet-her2")
    for typed, meant in (("PixNet-HER2ST", "pixnet-her2st"), (saved.with_name(f"{saved.name}s"), saved)):
        with pytest.raises(FileNotFoundError, match=re.escape(f"Did you mean {str(meant)!r}?")):
            models.load(typed)
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has a card but no model.safetensors"):
        models.load(saved)
    (saved / "card.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        models.load(saved)


def test_an_untrained_model_is_not_saved(build, tmp_path):
    with pytest.raises(ValueError, match="this Mean was never trained"):
        build("Mean").save(tmp_path / "x")


def test_the_card_tells_what_was_trained(saved):
    from stpredict import models

    card = models.load(saved).card
    assert (card.model, card.sections, card.licence, card.protocol) == ("Ridge", ("colour0",), "BSD-3-Clause", "stp-2")
    assert card.genes == ("red", "green", "blue")
    assert set(card.versions) == {"stpredict", "torch", "timm"}
    assert replace(card, weights_sha256=None) != card


def test_the_hash_of_the_provenance_is_that_of_the_file(saved):
    from stpredict import models
    from stpredict.models._base import weights_sha256

    model = models.load(saved)
    assert weights_sha256(model) == model.card.weights_sha256


def test_a_folder_without_a_card_is_told_from_no_folder(tmp_path):
    import stpredict as stp

    (tmp_path / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"without card.json: it holds \['last.ckpt'\]. A training that was"):
        stp.models.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder with a card.json nor one of the models"):
        stp.models.load(tmp_path / "absent")


@pytest.mark.parametrize(("name", "meant"), [("Pixnet", "PixNet"), ("pixnetconfig", "PixNetConfig"), ("Ridg", "Ridge")])
def test_a_misspelt_model_names_the_one_that_was_meant(name, meant):
    import stpredict as stp

    with pytest.raises(AttributeError, match=f"stpredict.models has no {name!r}. Did you mean {meant!r}"):
        getattr(stp.models, name)
