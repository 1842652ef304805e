"""What this process keeps from one call to the next, by name, so that all of it can be let go of at once."""

from __future__ import annotations

from collections.abc import Callable

_CACHES: dict[str, tuple[Callable[[], None], Callable[[], int] | None]] = {}


def register(name: str, clear: Callable[[], None], size: Callable[[], int] | None = None) -> None:
    """Enter a cache of a module, once, when the module is imported.

    Parameters
    ----------
    name : str
        What it keeps, for people. A name that is known already is replaced: the module was imported anew.
    clear : callable
        Empties it; nothing but time may be lost by that.
    size : callable, optional
        The bytes that it holds now; None where they are not known.
    """
    _CACHES[name] = clear, size


def clear_all() -> dict[str, int | None]:
    """Empty every cache; {name: the bytes it held, None where they are not known}."""
    held = {}
    for name, (clear, size) in list(_CACHES.items()):
        held[name] = None if size is None else size()
        clear()
    return held
