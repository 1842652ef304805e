"""The public contract, as signatures, and what the installed package carries."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS_LIMIT = 20 * 2**20

# The public verbs: names, kinds and defaults. More keywords with defaults may be added; what stands here stays.
CONTRACT = {
    "io.read_st": "(counts, image, spots, *, name='section', spot_diameter_um=100.0, pitch_um=200.0)",
    "io.read_visium": "(path, *, name=None)",
    "io.read_visium_hd": "(path, *, bin_um=8)",
    "io.read_xenium": "(path)",
    "io.read_image": "(path, *, mpp=None, name='slide')",
    "datasets.toy": "(n_sections=2, *, seed=0)",
    "datasets.her2st": "(sections, *, path=None)",
    "pp.gene_panel": "(sdatas, *, n_genes, by='mean', min_spots=None, table_name='table', layer=None)",
    "pp.tile_grid": (
        "(sdata, *, diameter_um, pitch_um=None, shape='circle', image_key=None, mpp=None, key_added='tiles')"
    ),
    "tl.train": (
        "(sdatas, model, *, val=None, image_key=None, shapes_key=None, table_name='table', layer=None, "
        "target='log1p_cp10k', mpp=None, tissue_key=None, max_epochs=None, batch_size=None, lr=None, seed=0, "
        "device='auto', precision='auto', devices=1, strategy='auto', num_nodes=1, checkpoint_dir=None, resume=False, "
        "progress=True)"
    ),
    "tl.predict": (
        "(sdata, model, *, image_key=None, shapes_key=None, table_name=None, genes=None, mpp=None, tissue_key=None, "
        "output='layer', raster_mpp=None, key_added=None, table_added=None, overwrite=False, device='auto', "
        "precision='auto', batch_size='auto', progress=True)"
    ),
    "tl.aggregate": (
        "(sdata, raster_key, *, shapes_key, stat='mean', genes=None, table_name=None, table_added=None, "
        "key_added=None, overwrite=False)"
    ),
    "tl.query": (
        "(sdata, latent_key, genes, *, model=None, shapes_key=None, output='layer', key_added=None, overwrite=False)"
    ),
    "tl.embed": "(sdata, model, *, shapes_key=None, mpp=None, key_added=None)",
    "tl.embed_genes": "(texts, *, encoder)",
    "pp.describe_genes": "(genes, *, source)",
    "tl.evaluate": "(sdatas, key, *, layer=None, table_name='table', groups=None)",
    "models.list_models": "()",
    "models.load": "(name_or_path)",
    "metrics.pcc": "(pred, true)",
    "metrics.spearman": "(pred, true)",
    "metrics.mse": "(pred, true)",
    "metrics.mae": "(pred, true)",
}


@pytest.fixture
def stp():
    import stpredict

    return stpredict


def parts(signature: str) -> tuple[list[str], dict[str, str | None]]:
    """The positional parameters of "(a, b=1, *, c, d=2)", and its keywords with their defaults: {c: None, d: "2"}."""
    listed = signature[1:-1].split(", ") if signature != "()" else []
    star = listed.index("*") if "*" in listed else len(listed)
    keywords = (item.partition("=") for item in listed[star + 1 :])
    return listed[:star], {name: default or None for name, _, default in keywords}


def bare(function) -> str:
    """A signature without annotations."""
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("verb", CONTRACT)
def test_signature_keeps_the_contract(stp, verb: str):
    namespace, name = verb.split(".")
    positional, keywords = parts(bare(getattr(getattr(stp, namespace), name)))
    wanted_positional, wanted_keywords = parts(CONTRACT[verb])
    assert positional == wanted_positional
    assert {key: keywords.get(key, "is not there") for key in wanted_keywords} == wanted_keywords
    assert [key for key in keywords if key not in wanted_keywords and keywords[key] is None] == []


def test_no_verb_takes_anonymous_keywords(stp):
    kinds = {
        f"{namespace}.{name}": {parameter.kind for parameter in inspect.signature(verb).parameters.values()}
        for namespace in ("datasets", "io", "metrics", "pl", "pp", "tables", "tl")
        for name in getattr(stp, namespace).__all__
        if inspect.isfunction(verb := getattr(getattr(stp, namespace), name))
    }
    anonymous = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert kinds and [verb for verb, seen in kinds.items() if seen & anonymous] == []


def test_every_public_name_is_documented_in_the_api(stp):
    """docs/api.md lists each function and class that a namespace exports, and nothing that does not exist."""
    listed = set(
        re.findall(r"^ {4}([a-z]+\.\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    public = {
        f"{namespace}.{name}"
        for namespace in ("datasets", "io", "metrics", "models", "pl", "pp", "tables", "tl")
        for name in getattr(stp, namespace).__all__
        if callable(getattr(getattr(stp, namespace), name))
    }
    assert listed == public


def package_folder() -> Path:
    spec = importlib.util.find_spec("stpredict")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def test_types_are_announced():
    assert (package_folder() / "py.typed").is_file()


def test_metadata_names_licence_and_python():
    metadata = importlib.metadata.metadata("stpredict")
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.12"
    assert (ROOT / ".python-version").read_text(encoding="utf-8").strip() == "3.12"


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="stpredict")
    assert callable(command.load())


def test_shipped_models_are_whole_and_small():
    """Each folder of models/weights is a model that loads without a download: weights beside a card, 20 MB in all."""
    folders = [folder for folder in (package_folder() / "models" / "weights").iterdir() if folder.is_dir()]
    assert "pixnet-her2st" in {folder.name for folder in folders}
    for folder in folders:
        assert {file.name for file in folder.iterdir()} == {"card.json", "model.safetensors"}
        assert json.loads((folder / "card.json").read_text(encoding="utf-8"))["genes"]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= WEIGHTS_LIMIT


def test_changelog_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
