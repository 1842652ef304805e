"""Check, when a model class is made, that it declares what training and inference need."""

from __future__ import annotations

import inspect
from abc import ABC
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

OUTPUTS = ("spots", "raster")
CONTEXTS = ("shape", "neighbours", "section")
CONFIG = {
    "genes": "tuple[str, ...]",
    "mpp": "float = 1.0",
    "recipe": "stp.models.Recipe = field(default_factory=stp.models.Recipe)",
}
DENSE = {  # how inference lays tiles over an image, and reads its maps out
    "core_px": "int = 512  # side of an inference tile, a multiple of the stride",
    "halo_px": "int = 64  # what is read around it: as far as the network sees",
    "window_px": "int = 256  # side of a training window",
    "reduction": 'Literal["mean", "sum"] = "mean"  # how the map is pooled inside a shape',
    "turns": "int = 1  # 4 or 8: the mean over quarter turns (and flips) at prediction",
}


@dataclass(frozen=True)
class Tiling:
    """How a dense model goes over an image: fields of its config, in pixels at its resolution.

    Parameters
    ----------
    core_px, halo_px : int
        Side of an inference tile, and how much of the image is read around it.
    window_px : int
        Side of a training window.
    reduction : {"mean", "sum"}
        How the map is pooled inside a shape.
    turns : int
        How many symmetries of the square a prediction is averaged over.
    """

    core_px: int
    halo_px: int
    window_px: int
    reduction: Literal["mean", "sum"]
    turns: int


def check_declaration(made: type, base: type) -> None:
    """Check that a subclass of `base` (`Model`) has what training, prediction and saving ask of it.

    A class that names ABC among its bases is a step on the way to models, and may lack everything.

    Raises
    ------
    TypeError
        Naming the class, all that is missing, and what to write.
    """
    if ABC in made.__bases__:
        return
    missing = [*_attributes(made, base), *_fields(made, base), *_methods(made, base)]
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise TypeError(
            f"class {made.__name__} is no whole model. It lacks:\n{lines}\n"
            "A class from which models are to be made names ABC among its bases, and may lack them."
        )


def _attributes(made: type, base: type) -> list[str]:
    """Class attributes that are missing or wrong, each as the line to write."""
    lines = []
    for name, choices in (("output", OUTPUTS), ("context", CONTEXTS)):
        value = _declared(made, base, name)
        if value is None or (isinstance(value, str) and value not in choices):
            got = "" if value is None else f", got {value!r}"
            lines.append(f"{name} = {' or '.join(map(repr, choices))}{got}")
    if _declared(made, base, "config_class") is None:
        lines.append("config_class = MyConfig, a frozen dataclass made from stp.models.Config")
    if _declared(made, base, "output") == "raster" and not _annotated(made, base, "stride"):
        lines.append("stride: float, which __init__ sets: pixels of the image along a cell of the latent map")
    return lines


def _fields(made: type, base: type) -> list[str]:
    """Fields that the config of a model lacks, each as the line to write."""
    config = _declared(made, base, "config_class")
    if config is None:
        return []
    name = getattr(config, "__name__", repr(config))
    if not is_dataclass(config):
        return [f"config_class = a dataclass; {name} is none"]
    wanted = CONFIG | (DENSE if _declared(made, base, "output") == "raster" else {})
    has = {field.name for field in fields(config)}
    return [f"{field}: {hint}, in {name}" for field, hint in wanted.items() if field not in has]


def _methods(made: type, base: type) -> list[str]:
    """Abstract methods that nothing implements, each as the line to write."""
    abstract = {
        name: value
        for kind in reversed(made.__mro__)
        for name, value in vars(kind).items()
        if getattr(value, "__isabstractmethod__", False)
    }
    lines = []
    for name, value in abstract.items():
        if getattr(getattr(made, name), "__isabstractmethod__", False):
            said = (inspect.getdoc(value) or "").partition("\n")[0]
            names = ", ".join(inspect.signature(inspect.unwrap(value)).parameters) if callable(value) else "self"
            lines.append(f"def {name}({names}): {said}")
    return lines


def _declared(made: type, base: type, name: str) -> Any:
    """The value that a class below `base` gives a name; None where none does."""
    for kind in made.__mro__[: made.__mro__.index(base)]:
        if name in vars(kind):
            return vars(kind)[name]
    return None


def _annotated(made: type, base: type, name: str) -> bool:
    """Whether a class below `base` declares a name, with a value or as an annotation."""
    below = made.__mro__[: made.__mro__.index(base)]
    return any(name in vars(kind) or name in vars(kind).get("__annotations__", {}) for kind in below)
