"""Registry of model classes: those of this package, of entry points, and registered ones.

A card names a class; it never says where code lies. What is opened for it was installed or written by the user.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from stpredict._schema import shown
from stpredict.models._base import Model

GROUP = "stpredict.models"
WAYS = (
    "Import the file whose class has the decorator stp.models.register; or install the package that offers it as an "
    f"entry point of the group {GROUP!r}; or pass the class itself, stp.models.load(path, model_class=...)."
)
_registered: dict[str, type[Model]] = {}


@cache
def own_classes() -> dict[str, type[Model]]:
    """The classes of the model files of this package by name, found by looking: the directory is the list."""
    files = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"stpredict.models.{file}") for file in files]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__ == module.__name__
    }


def register[M: type](model_class: M) -> M:
    """Make a model class of your own known by its name, so that `load` and `tl.predict` open what it saved.

    Parameters
    ----------
    model_class : M
        A subclass of `Model`. A class that was defined anew under the same name, as in a notebook, takes its place.

    Returns
    -------
    type
        The class itself: this is a decorator.

    Raises
    ------
    ValueError
        For what is no model class, and for a name that a model of this package or another class of yours has.

    Examples
    --------
    >>> @stp.models.register
    ... class MyRidge(stp.models.Ridge):
    ...     pass
    >>> issubclass(MyRidge, stp.models.Model)
    True
    """
    if not (isinstance(model_class, type) and issubclass(model_class, Model)):
        raise ValueError(f"model_class={model_class!r} must be a subclass of stp.models.Model.")
    name = model_class.__name__
    before = own_classes().get(name) or _registered.get(name)
    if before is not None and _place(before) != _place(model_class):
        raise ValueError(f"a model {name!r} is known already, of {before.__module__}; give yours another name.")
    _registered[name] = model_class
    return model_class


def _place(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def known_classes() -> dict[str, type[Model]]:
    """The classes of this package and those that were registered, by name; entry points are not opened."""
    return _registered | own_classes()


def class_named(name: str, where: Path) -> type[Model]:
    """The class that a card names.

    Parameters
    ----------
    name : str
        What the card says; data that a stranger may have written.
    where : Path
        The card, for messages.

    Raises
    ------
    ValueError
        For a name that nobody made known, with the ways to do so, and for an entry point that is no model class.
    """
    if name in known_classes():
        return known_classes()[name]
    offered = [point for point in entry_points(group=GROUP) if point.name == name]
    if not offered:
        raise ValueError(
            f"{where}: model is {shown(name)}, which is not known here: {sorted(known_classes())} are. {WAYS}"
        )
    found = offered[0].load()
    if not (isinstance(found, type) and issubclass(found, Model) and found.__name__ == name):
        raise ValueError(
            f"{where}: model is {shown(name)}; the entry point of that name ({offered[0].value}) is no class of that "
            "name made from stp.models.Model. Correct the entry point in the package that offers it."
        )
    return found
