"""The folder of a model as data: what is in it cannot run, reach out, take memory, or be half written."""

from __future__ import annotations

import json
import pickle
import shutil
import socket

import jaxtyping
import numpy as np
import pytest

GENES = ("red", "green", "blue")
FILES = ["README.md", "card.json", "model.safetensors"]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def fitted(colour_section):
    """A function of a model that trains it for one epoch."""
    from stpredict._training import TrainOptions, fit

    def train(model):
        fit(model, [colour_section(0, size=128)], [], TrainOptions(device="cpu", precision="32", progress=False))
        return model

    return train


@pytest.fixture(scope="module")
def originals(fitted, tmp_path_factory):
    """Folders of a Ridge, an STNet, and an STNet whose encoder has a hub name."""
    from stpredict import models

    def stnet(**fields):
        recipe = models.Recipe(max_epochs=1, batch_size=8)
        config = models.STNetConfig(genes=GENES, mpp=1.0, patch_px=32, symmetries=1, recipe=recipe, **fields)
        return models.STNet(config=config)

    colours = {"encoder_mean": (0.5,) * 3, "encoder_std": (0.25,) * 3}
    made = {
        "ridge": models.Ridge(GENES),
        "stnet": stnet(encoder="test_resnet", taps=(3,)),
        "hub": stnet(encoder="hf-hub:owner/tiny-vit", taps=(2,), encoder_kwargs=VIT, **colours),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        fitted(model).save(root / name)
    return root


@pytest.fixture
def saved(originals, tmp_path, monkeypatch):
    """A function of a name: a copy of that folder. Sockets are shut, and annotations are not checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations are checked in tests alone

    def shut(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", shut)
    monkeypatch.setattr(socket, "getaddrinfo", shut)
    return lambda name: shutil.copytree(originals / name, tmp_path / name)


def _change(folder, *, config=None, **fields):
    card = json.loads((folder / "card.json").read_text())
    card |= fields
    card["config"] |= config or {}
    (folder / "card.json").write_text(json.dumps(card))


def _refused(folder, said):
    from stpredict import models

    with pytest.raises(ValueError, match=said) as caught:
        models.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained", "cache_dir", "out_indices"])
def test_a_card_hands_no_file_to_timm(saved, key):
    folder = saved("stnet")
    (folder / "notes.pth").write_bytes(pickle.dumps({"state_dict": {}}))
    _change(folder, config={"encoder_kwargs": {key: str(folder / "notes.pth")}})
    _refused(folder, f"encoder_kwargs: '{key}' does not shape a network")


@pytest.mark.parametrize(("kwargs", "said"), [
    ({"depth": 10**9}, r"encoder_kwargs\['depth'\]=1000000000: must lie in \[1, 256\]"),
    ({"embed_dim": 10**7}, r"encoder_kwargs\['embed_dim'\]=10000000: must lie in"),
    ({"img_size": [4096, 4096]}, r"encoder_kwargs\['img_size'\]=.*at most 4194304 pixels"),
    ({"depths": [256, 256]}, r"encoder_kwargs\['depths'\]=.*: at most 256 blocks in all"),
    ({"block_config": [100] * 3}, "at most 256 blocks in all"),
    ({"mlp_layer": "Sequential"}, r"encoder_kwargs\['mlp_layer'\]='Sequential' must be one of 'Mlp'"),
    ({"qkv_bias": 1}, r"encoder_kwargs\['qkv_bias'\]=1 must be true or false"),
    ({"drop_rate": float("nan")}, "NaN is no JSON number"),
    ({"embed_dim": 8192, "depth": 250}, "does not fit a STNet of its card"),  # 200 GB, had it been built
])  # fmt: skip
def test_keywords_that_no_network_has_are_refused_before_memory_is_taken(saved, kwargs, said):
    folder = saved("hub")
    _change(folder, config={"encoder_kwargs": VIT | kwargs})
    _refused(folder, said)


@pytest.mark.parametrize(("encoder", "said"), [
    ("resnet9999", "encoder='resnet9999' is no network of timm .* Closest names: .*resnet"),
    ("test_resnet.nope", "timm has no weights of that tag. Closest: test_resnet.r160_in1k"),
    ("local-dir:/etc", "encoder='local-dir:/etc' is no network of timm"),
    ("hf_hub:owner/name", "encoder='hf_hub:owner/name' is no network of timm"),
    ("hf-hub:owner/other", "is a hub name, and encoder_kwargs do not say how it is built; a model folder asks no hub"),
    ("convnext_xxlarge", "does not fit a STNet of its card"),  # 3 GB
])  # fmt: skip
def test_a_card_opens_no_hub_and_no_folder_for_an_encoder(saved, encoder, said):
    folder = saved("stnet")
    _change(folder, encoder=encoder, config={"encoder": encoder})
    _refused(folder, said)


def test_a_hub_encoder_is_built_from_its_own_keywords(saved, colour_section):
    from stpredict import models
    from stpredict._inference import RuntimeOptions, predict

    model = models.load(saved("hub"))
    assert type(model.encoder.encoder.net).__name__ == "VisionTransformer"
    assert model.encoder.encoder.mean.flatten().tolist() == [0.5] * 3
    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    assert np.isfinite(predict(model, colour_section(1, size=128), list(GENES), runtime=run)[0]).all()


def test_a_hub_encoder_of_an_older_card_has_the_colours_of_imagenet(saved):
    from stpredict import models

    folder = saved("hub")
    _change(folder, config={"encoder_mean": None, "encoder_std": None})
    model = models.load(folder)
    assert model.config.encoder_mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(("fields", "config", "said"), [
    ({"genes": "abc"}, {}, "genes='abc' must be a list, each of it a text"),
    ({"genes": [1, 2, 3]}, {}, r"genes=\(1, 2, 3\) must be a list"),
    ({"genes": ["red", "green", "grey"]}, {}, "genes is .*grey.*, and config.genes is .*blue"),
    ({}, {"genes": ["red", "green"]}, "genes is .* and config.genes is"),
    ({"genes": ["red", "green", "\ud800"]}, {"genes": ["red", "green", "\ud800"]}, "genes="),
    ({"mpp": 2.0}, {}, "mpp is 2.0, and config.mpp is 1.0"),
    ({"mpp": "x"}, {}, "mpp='x' must be a finite number"),
    ({"mpp": -1}, {"mpp": -1}, r"mpp=-1: must lie in \[0.01, 1000\]"),
    ({"encoder": "resnet18"}, {}, "encoder is 'resnet18', and config.encoder is None"),
    ({"model": []}, {}, r"model=\(\) must be a text"),
    ({"val_pcc": "x"}, {}, "val_pcc='x' must be a mapping of names, each to a finite number or None"),
    ({"val_pcc": {"red": 3.0}}, {}, r"val_pcc of 'red' is 3; a correlation lies in \[-1, 1\]"),
    ({"sections": [1]}, {}, "sections="),
    ({"versions": {"torch": 2}}, {}, "versions="),
    ({"versions": {"a/b": "1"}}, {}, "versions has 'a/b', which is no name of a package"),
    ({"versions": {"..": "1"}}, {}, "versions has"),
    ({"versions": {"": "1"}}, {}, "versions has"),
    ({"versions": {"zarr.json": "1"}}, {}, "versions has"),
    ({"seed": -1}, {}, "seed=-1: must lie in"),
    ({"weights_sha256": 5}, {}, "weights_sha256=5 must be a text or None"),
    ({}, {"recipe": None}, "recipe=None must be a Recipe"),
    ({}, {"recipe": {"rate": 1}}, r"recipe has fields that are unknown: \['rate'\]"),
    ({}, {"recipe": {"lr": -1}}, "lr=-1: must lie in"),
    ({}, {"penalties": [-1.0]}, r"penalties=\(-1.0,\): each value of it must lie in"),
    ({}, {"patch_um": 1e9}, "patch_um=1000000000.0: must lie in"),
    ({"config": 3}, None, "config=3 must be a mapping"),
])  # fmt: skip
def test_a_card_is_checked_as_a_whole(saved, fields, config, said):
    folder = saved("ridge")
    if config is None:
        card = json.loads((folder / "card.json").read_text()) | fields
        (folder / "card.json").write_text(json.dumps(card))
    else:
        _change(folder, config=config, **fields)
    _refused(folder, said)


@pytest.mark.parametrize(("text", "said"), [
    ("", "is not JSON"),
    ("[" * 100_000, "nested too deep"),
    ("[" * 500 + "]" * 500, "nested too deep"),
    ('{"a": ' * 100_000, "nested too deep"),
    ('{"format": "stpredict-card/1", "mpp": 1, "mpp": 2}', "the key 'mpp' occurs twice"),
    ('{"mpp": Infinity}', "Infinity is no JSON number"),
    ('{"mpp": 1e999}', "beyond what a float can hold"),
    ('{"mpp": ' + "9" * 10_000 + "}", "is not JSON"),
    ("[]", "its format is 'list'"),
])  # fmt: skip
def test_broken_json_is_said_with_the_file(saved, text, said):
    folder = saved("ridge")
    (folder / "card.json").write_text(text)
    _refused(folder, said)


def _rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    from stpredict._card import sha256

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    _change(folder, weights_sha256=sha256(folder / "model.safetensors"))


def test_tensors_of_another_shape_or_type_or_without_values_are_named(saved):
    import torch

    cases = [
        (lambda s: s.update(spread=torch.ones(7)), "such as spread: (7,) for (42,)"),
        (lambda s: s.update(spread=torch.ones(42, 10**6).half()[:, :1].contiguous()), "such as spread: (42, 1) for"),
        (lambda s: s.update(weight=s["weight"].double()), "such as weight: torch.float64 for torch.float32"),
        (lambda s: s["weight"].fill_(float("nan")), "tensor 'weight' has NaN or infinite values"),
        (lambda s: s["centre"][3:4].fill_(float("inf")), "tensor 'centre' has NaN or infinite values"),
    ]
    for change, said in cases:
        folder = saved("ridge")
        _rewrite(folder, change)
        _refused(folder, said.replace("(", r"\(").replace(")", r"\)"))
        shutil.rmtree(folder)


def test_what_is_no_safetensors_file_is_said_with_the_file(saved):
    from stpredict._card import sha256

    folder = saved("ridge")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    _change(folder, weights_sha256=sha256(folder / "model.safetensors"))
    _refused(folder, "model.safetensors is no .safetensors file, or a damaged one")


def test_weights_that_predict_no_numbers_are_said_when_they_predict(saved, colour_section):
    from stpredict import models
    from stpredict._inference import RuntimeOptions, predict

    folder = saved("ridge")
    _rewrite(folder, lambda s: s["spread"].fill_(0.0))
    model = models.load(folder)
    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    with pytest.raises(ValueError, match="predicts values that are NaN or infinite for 3 of 3 genes") as caught:
        predict(model, colour_section(1, size=128), list(GENES), runtime=run)
    assert str(folder) in str(caught.value)


def test_counters_of_batches_may_be_missing(saved):
    from stpredict import models

    folder = saved("stnet")
    keys = [key for key in models.load(folder).state_dict() if key.endswith("num_batches_tracked")]
    assert keys
    _rewrite(folder, lambda s: [s.pop(key) for key in keys])
    models.load(folder)


def test_a_model_is_not_saved_over_another_unasked(saved):
    from stpredict import models

    folder = saved("ridge")
    model, before = models.load(folder), (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a model already. Pass another path, or overwrite=True"):
        model.save(folder)
    model.weight = model.weight + 1
    model.save(folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in folder.iterdir()) == FILES
    models.load(folder)


def test_a_link_that_lies_in_a_folder_is_not_followed_by_a_save(saved, tmp_path):
    from stpredict import models

    folder, victim = saved("ridge"), tmp_path / "victim.txt"
    victim.write_text("mine")
    for name in (".card.json.new", ".card.json.new.part", ".model.safetensors.new", ".README.md.new"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
    models.load(folder).save(folder, overwrite=True)
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize(("given", "said"), [
    ({"path": ""}, "path is an empty text"),
    ({"path": 5}, "path=5 must be a text or a path"),
    ({"path": "x\0y"}, "path=.* holds a null character"),
    ({"overwrite": "yes"}, "overwrite='yes' must be true or false"),
])  # fmt: skip
def test_a_mistyped_save_is_refused(saved, tmp_path, given, said):
    from stpredict import models

    model = models.load(saved("ridge"))
    with pytest.raises(ValueError, match=said):
        model.save(**({"path": tmp_path / "new"} | given))


def test_a_model_is_not_saved_into_a_file(saved, tmp_path):
    from stpredict import models

    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError, match="is a file, and a model is a folder"):
        models.load(saved("ridge")).save(tmp_path / "there")


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("there", [True, False])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new(saved, tmp_path, monkeypatch, there):
    from stpredict import models
    from stpredict.models import _folder

    steps = ("unlink", "save_file", "sha256", "write", "fsync", "replace")

    def run(stop: int, folder) -> int:
        """Save a changed model until the `stop`-th step; how many steps there were."""
        done = 0

        def stepping(original):
            def step(*args, **kwargs):
                nonlocal done
                done += 1
                if done > stop:
                    raise Killed
                return original(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            for owner, name in (
                (_folder, "save_file"), (_folder, "sha256"), (_folder.os, "fsync"), (_folder.os, "replace"),
                (_folder.Card, "write"), (_folder.Path, "unlink"),
            ):  # fmt: skip
                assert name in steps
                patch.setattr(owner, name, stepping(getattr(owner, name)))
            new.save(folder, overwrite=True)
        return done

    old = models.load(saved("ridge"))
    new = models.load(tmp_path / "ridge")
    new.weight = new.weight + 1
    n = run(10**6, tmp_path / "whole")
    assert n >= 9
    for stop in range(n):
        folder = tmp_path / f"{stop}"
        if there:
            shutil.copytree(tmp_path / "ridge", folder)
        with pytest.raises(Killed):
            run(stop, folder)
        try:
            left = models.load(folder)
        except FileNotFoundError:
            assert not there
        else:
            same = [bool((left.weight == each.weight).all()) for each in (old, new)]
            assert sum(same) == 1 and (there or same[1])
        new.save(folder, overwrite=True)  # and the next save is whole, whatever was left
        assert bool((models.load(folder).weight == new.weight).all())
        assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize(("name", "fields"), [
    ("PixNet", {"reduction": "max"}), ("PixNet", {"link": "exp"}), ("PixNet", {"n_bilinear": 99}),
    ("PixNet", {"n_bilinear": 4}), ("PixNet", {"core_px": 0}), ("PixNet", {"window_px": -384}),
    ("PixNet", {"halo_px": -384}), ("PixNet", {"context_share": float("nan")}), ("PixNet", {"taps": (9,)}),
    ("PixNet", {"taps": ()}), ("PixNet", {"attention_window": 0}), ("PixNet", {"recipe": None}),
    ("PixNet", {"filters": (8, 8, -1, 8)}), ("PixNet", {"mpp": float("nan")}), ("PixNet", {"mpp": "1"}),
    ("PixNet", {"encoder": "nope"}), ("PixNet", {"encoder_std": (0.0, 0.0, 0.0)}), ("PixNet", {"pcc_weight": -1.0}),
    ("Ridge", {"mpp": float("nan")}), ("Ridge", {"patch_um": -1.0}), ("Mean", {"mpp": 0}), ("STNet", {"patch_px": 0}),
    ("STNet", {"symmetries": True}), ("BLEEP", {"top": 0}), ("BLEEP", {"temperature": 0.0}), ("EGN", {"exemplars": -1}),
    ("EGN", {"pool_weight": float("nan")}), ("HisToGene", {"heads": 0}), ("HisToGene", {"dropout": 1.5}),
    ("TRIPLEX", {"branch_share": -0.1}), ("TRIPLEX", {"fusion": (1, 4, 2)}), ("TRIPLEX", {"side": 4}),
])  # fmt: skip
def test_a_value_out_of_its_range_is_named(saved, name, fields):
    from stpredict import models

    with pytest.raises(ValueError, match=next(iter(fields))):
        getattr(models, name)(config=getattr(models, f"{name}Config")(genes=("a",), **fields))


def test_a_constructor_says_what_it_was_given(saved):
    from stpredict import models

    with pytest.raises(ValueError, match="encoder='mobilenet_v2' is no network of timm .*Closest names: .*mobilenet"):
        models.PixNet(["a"], encoder="mobilenet_v2")
    with pytest.raises(ValueError, match=r"config=None must be a text or a PixNetConfig.*'published'"):
        models.PixNet(["a"], config=None)
    with pytest.raises(ValueError, match="mpp=nan must be a finite number"):
        models.Ridge(["a"], mpp=float("nan"))
    with pytest.raises(ValueError, match=r"genes=\[None, 1\] must be a list, each of it a text"):
        models.Ridge([None, 1])
    with pytest.raises(ValueError, match="no .safetensors file"):
        models.PixNet(["a"], encoder_weights=__file__)


def test_what_could_not_be_read_again_is_not_saved(saved, tmp_path):
    from dataclasses import replace

    from stpredict import models

    model = models.load(saved("ridge"))
    card, weight = model.card, model.weight
    model.card = replace(card, sections=(1,))
    with pytest.raises(ValueError, match="sections="):
        model.save(tmp_path / "new")
    model.card, model.weight = card, weight * float("nan")
    with pytest.raises(ValueError, match="tensor 'weight' has NaN or infinite values"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_old_model_and_nothing_else(saved, monkeypatch):
    from stpredict import models
    from stpredict.models import _folder

    folder = saved("ridge")
    model = models.load(folder)

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(_folder, "save_file", full)
    with pytest.raises(OSError, match="disk is full"):
        model.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    models.load(folder)


def test_numbers_of_numpy_are_kept_as_numbers_of_python(saved):
    from stpredict import models

    config = models.STNetConfig(genes=["a"], mpp=np.float32(0.5), patch_px=np.int64(64), taps=[3])
    assert (config.genes, config.taps) == (("a",), (3,))
    assert type(config.mpp) is float and type(config.patch_px) is int


def test_whoever_may_read_the_card_may_read_the_weights(saved):
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved("stnet").iterdir()}
    assert modes["model.safetensors"] == modes["card.json"] == modes["README.md"]
