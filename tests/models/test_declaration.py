"""What a model must declare: forgetting one is refused when the class is made, and the error says what to write."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import pytest

METHODS = ("prepare", "samples", "query", "latent", "head", "loss")
CONFIG = ("genes", "mpp", "recipe")
DENSE = ("core_px", "halo_px", "window_px", "reduction", "turns")


def config(without: str = "", *, dense: bool = False) -> type:
    """A config class that lacks one field."""
    from stpredict.models import Config, Recipe

    own = [("genes", tuple[str, ...], dataclasses.field(default=())), ("mpp", float, 1.0)]
    own += [("recipe", Recipe, dataclasses.field(default_factory=Recipe))]
    tiles = [(name, object, 1) for name in DENSE] if dense else []
    return dataclasses.make_dataclass(
        "MyConfig", [field for field in [*own, *tiles] if field[0] != without], bases=(Config,), frozen=True
    )


def declare(without: str = "", *, bases: tuple = (), dense: bool = False, **changes):
    """A model class that lacks one thing."""
    from stpredict.models import Model

    content = {"output": "raster" if dense else "spots", "context": "shape", "config_class": config(dense=dense)}
    content |= {name: lambda self, *given: None for name in METHODS} | ({"stride": 4.0} if dense else {}) | changes
    content.pop(without, None)
    return type("Mine", bases or (Model,), content)


def test_a_whole_class_is_a_model():
    assert declare()(config()(genes=("a",))).gene_index(["a"]) == [0]
    assert declare(dense=True)
    assert declare("stride", dense=True, __annotations__={"stride": float})


@pytest.mark.parametrize("name", ["output", "context", "config_class", *METHODS])
def test_forgetting_one_is_refused_by_name(name):
    with pytest.raises(TypeError, match=rf"(?s)class Mine is no whole model. It lacks:\n  (def )?{name}\b") as caught:
        declare(name)
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("name", CONFIG)
def test_forgetting_a_field_of_the_config_is_refused_by_name(name):
    with pytest.raises(TypeError, match=rf"class Mine is no whole model. It lacks:\n  {name}: .*, in MyConfig"):
        declare(config_class=config(name))


@pytest.mark.parametrize("name", DENSE)
def test_forgetting_what_inference_asks_of_a_dense_model_is_refused(name):
    with pytest.raises(TypeError, match=rf"class Mine is no whole model. It lacks:\n  {name}: .*, in MyConfig"):
        declare(dense=True, config_class=config(name, dense=True))


def test_forgetting_the_stride_of_a_dense_model_is_refused():
    with pytest.raises(TypeError, match="It lacks:\n  stride: float"):
        declare("stride", dense=True)


def test_all_that_is_missing_is_said_at_once():
    from stpredict.models import Model

    with pytest.raises(TypeError) as caught:
        type("Mine", (Model,), {})
    for name in ("output", "context", "config_class", *METHODS):
        assert f" {name}" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("output", "map"), ("context", "slide"), ("config_class", dict)])
def test_a_value_that_is_none_of_the_choices_is_refused(name, value):
    said = "dict is none" if value is dict else repr(value)
    with pytest.raises(TypeError, match=rf"{name} = .*{said}"):
        declare(**{name: value})


def test_a_class_on_the_way_to_models_may_lack_everything():
    from stpredict.models import Model

    class Halfway(Model, ABC):
        @abstractmethod
        def more(self) -> int:
            """Another question."""

    assert declare(bases=(Halfway,), more=lambda self: 1)
    with pytest.raises(TypeError, match=r"It lacks:\n  def more\(self\): Another question\."):
        declare(bases=(Halfway,))


def test_a_dense_model_says_how_it_goes_over_an_image(build):
    tiling = build("PixNet").tiling
    assert (tiling.core_px, tiling.halo_px, tiling.window_px, tiling.reduction, tiling.turns) == (
        512,
        256,
        256,
        "mean",
        1,
    )
    assert build("Ridge").tiling is None


def test_what_an_answer_depends_on_is_one_of_three(build):
    found = {name: build(name).context for name in ("Ridge", "TRIPLEX", "HisToGene", "GeneQuery")}
    assert found == {"Ridge": "shape", "TRIPLEX": "neighbours", "HisToGene": "section", "GeneQuery": "section"}
    assert [build(name).uses_section_context for name in found] == [False, True, True, True]


def test_genes_outside_the_panel_are_named(build):
    model = build("Ridge")
    assert model.gene_index(["blue", "red"]) == [2, 0]
    with pytest.raises(ValueError, match=r"1 of 2 genes are not in this Ridge's panel: \['plum'\]"):
        model.gene_index(["red", "plum"])


@pytest.mark.parametrize(
    ("old", "new"), [("answers_text", "is_text_queried"), ("sees_section", "uses_section_context")]
)
def test_old_names_of_properties_warn_and_answer(build, old, new):
    model = build("TRIPLEX")
    with pytest.warns(DeprecationWarning, match=f"Model.{old} is now called Model.{new}"):
        assert getattr(model, old) == getattr(model, new)


def test_the_old_name_of_add_embeddings_warns_and_adds(build):
    import numpy as np

    from stpredict._embeddings import GeneEmbeddings

    model = build("GeneQuery")
    more = GeneEmbeddings(genes=("plum",), vectors=np.ones((1, 8), np.float32), encoder="letters")
    with pytest.warns(DeprecationWarning, match="Model.know is now called Model.add_embeddings"):
        model.know(more)
    assert "plum" in model.vocabulary


FIRST = {  # fields by their position, which callers and saved cards rely on
    "BLEEP": "genes mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std frozen features",
    "EGN": "genes mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std tokens token_px",
    "GeneQuery": "genes vocabulary text context mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std",
    "HisToGene": "genes mpp patch_px patch encoder taps encoder_kwargs encoder_mean encoder_std frozen",
    "PixNet": "genes mpp encoder taps encoder_kwargs encoder_mean encoder_std filters n_bilinear",
    "SGN": "genes vocabulary text mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std frozen features",
    "STNet": "genes mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std frozen symmetries",
    "TRIPLEX": "genes mpp patch_px encoder taps encoder_kwargs encoder_mean encoder_std frozen context_features",
}


@pytest.mark.parametrize("name", FIRST)
def test_fields_that_configs_share_keep_their_places(name):
    from stpredict import models

    names = [field.name for field in dataclasses.fields(getattr(models, f"{name}Config"))]
    wanted = FIRST[name].split()
    assert names[: len(wanted)] == wanted
