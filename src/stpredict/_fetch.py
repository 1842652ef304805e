"""Public files by name: fetched once into a local folder, accepted only with the known checksum."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch

DATA_DIR_VARIABLE = "STPREDICT_DATA_DIR"


@dataclass(frozen=True)
class Remote:
    """A public file: where it is, and the sha256 (hex) that it must have."""

    url: str
    sha256: str


def data_dir() -> Path:
    """Where fetched files are kept: $STPREDICT_DATA_DIR, else the user's cache folder."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or pooch.os_cache("stpredict"))


def fetch(name: str, registry: Mapping[str, Remote], *, folder: str) -> Path:
    """The local path of the file `name`: fetched where it is not there yet, or is there with another checksum.

    Parameters
    ----------
    registry : Mapping[str, Remote]
        All files of one data set, by the name that they get here.
    folder : str
        Subfolder of `data_dir()` for the data set.

    Raises
    ------
    KeyError
        For a name without a known checksum.
    ValueError
        Where the file that arrives has another one (it is not kept).
    OSError
        Where it cannot be had.
    """
    if name not in registry:
        raise KeyError(f"no checksum is known for {name!r}; files that can be fetched: {sorted(registry)}")
    remote, target = registry[name], data_dir() / folder
    try:
        return Path(pooch.retrieve(remote.url, f"sha256:{remote.sha256}", fname=name, path=target))
    except OSError as error:  # what requests raises for no connection, no such page and the like is one
        raise OSError(
            f"{name} could not be fetched from {remote.url} into {target} ({type(error).__name__}: {error}). Fetch it "
            f"by hand into that folder, or point ${DATA_DIR_VARIABLE} at a folder that has it in {folder}/."
        ) from error
