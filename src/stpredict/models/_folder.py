"""Save a model to a folder atomically, and read a folder as untrusted data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stpredict._card import (
    CARD,
    NEW_CARD,
    NEW_README,
    NEW_WEIGHTS,
    README,
    WEIGHTS,
    Card,
    card_file,
    check_card,
    read_card,
    sha256,
)
from stpredict._schema import shown
from stpredict.models._fields import Config, Recipe
from stpredict.models._info import ModelInfo
from stpredict.models._readme import readme
from stpredict.nn.architecture import HUB, IMAGENET, is_determined
from stpredict.nn.state import Undrawn, check_values, differences, read_header, read_tensors

if TYPE_CHECKING:
    from stpredict.models._base import Model

SPARE_BYTES = 2**26  # what a network may hold beside the tensors of its file: tables of positions and the like


def write_model(
    folder: Path, state: Mapping[str, Tensor], card: Card, *, overwrite: bool, info: ModelInfo | None = None,
    name: str | None = None,
) -> Card:  # fmt: skip
    """Write weights, card and README, and return the card with the hash of the weights.

    Weights and card are put beside those of an older model, and moved: first the weights, then the card. Whoever is
    killed in between leaves the old model or the new one, see `stpredict._card.card_file`. The README is for reading,
    and nothing looks at it: it is moved last, and made from the card, `info` and the `name` to load the model by.

    Raises
    ------
    FileExistsError
        Where there is a model already and `overwrite` is not given.
    ValueError
        With nothing written, for what could not be read again: a card with a wrong field, a tensor with NaN or infinite
        values.
    """
    check_card(card)
    check_values(state, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and (card_file(folder).exists() or (folder / WEIGHTS).exists()):
        raise FileExistsError(f"{folder} holds a model already. Pass another path, or overwrite=True to replace it.")
    if card_file(folder).name == NEW_CARD:  # an earlier save was killed between its two moves
        os.replace(folder / NEW_CARD, folder / CARD)
    # the card first: without weights beside it, it would be taken for the model's
    aside = folder / f"{NEW_CARD}.part"
    for left in (folder / NEW_CARD, folder / NEW_WEIGHTS, folder / NEW_README, aside):  # and no link is followed
        left.unlink(missing_ok=True)
    try:
        save_file(dict(state), folder / NEW_WEIGHTS)
        card = replace(card, weights_sha256=sha256(folder / NEW_WEIGHTS))
        card.write(aside)
        shutil.copymode(aside, folder / NEW_WEIGHTS)  # safetensors writes for the owner alone, whatever the umask
        (folder / NEW_README).write_text(readme(card, info=info, name=name), encoding="utf-8")
        for path in (folder / NEW_WEIGHTS, aside):
            _sync(path)
    except Exception:  # a full disk
        for path in (folder / NEW_WEIGHTS, aside, folder / NEW_README):
            path.unlink(missing_ok=True)
        raise
    os.replace(aside, folder / NEW_CARD)
    os.replace(folder / NEW_WEIGHTS, folder / WEIGHTS)
    _sync(folder)
    os.replace(folder / NEW_CARD, folder / CARD)
    os.replace(folder / NEW_README, folder / README)
    return card


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checked_weights(folder: Path) -> tuple[Card, Path]:
    """The card of a folder and the path of its weights, which have the hash that the card says.

    Raises
    ------
    FileNotFoundError
        Where one is missing.
    ValueError
        For a changed byte and for what `Card.read` refuses.
    """
    card, path = read_card(folder), folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has a card but no {WEIGHTS}.")
    found = sha256(path)
    if card.weights_sha256 != found:
        card = read_card(folder)  # once more: somebody may have saved a new model in between
        found = sha256(path)
    if card.weights_sha256 != found:
        raise ValueError(
            f"{path} is not the file its card describes: sha256 {found[:12]}..., expected "
            f"{str(card.weights_sha256)[:12]}... . It was changed or damaged; copy or download the model again."
        )
    return card, path


@dataclass(frozen=True)
class Saved:
    """A folder whose card, network and weights were found to fit, before any memory was taken for them.

    Parameters
    ----------
    skeleton, header
        The network, and the tensors of the file, on the device "meta".
    """

    card: Card
    config: Config
    skeleton: Model
    weights: Path
    header: Mapping[str, Tensor]


def checked(folder: Path, kind: type[Model]) -> Saved:
    """What a folder holds, compared with itself; nothing outside the folder is opened.

    Raises as `checked_weights` does, and ValueError where the network of the card is not that of the weights.
    """
    card, path = checked_weights(folder)
    where = card_file(folder)
    header = read_header(path)
    config = _from_card(where, lambda: config_of(card, kind.config_class))
    with torch.device("meta"), Undrawn():
        for prefixes, make in _from_card(where, config.parts) if isinstance(config, Config) else ():
            part = _from_card(where, make)  # the first that does not fit ends it
            for prefix in prefixes:
                _check_fit(path, card, part, {k: v for k, v in header.items() if k.startswith(prefix)}, prefix)
        skeleton: Model = _from_card(where, lambda: kind(config=config))
    if (skeleton.genes, skeleton.mpp) != (card.genes, card.mpp) or card.cell_um not in (None, skeleton.cell_um):
        raise ValueError(f"{where}: genes, mpp or cell_um are not those of the {card.model} that its config describes.")
    card = replace(card, cell_um=skeleton.cell_um)  # older cards do not say it
    _check_fit(path, card, skeleton, header)
    return Saved(card, config, skeleton, path, header)


def read_model(folder: Path, kind: type[Model]) -> Model:
    """The model of class `kind` in a folder, with its weights and its card; raises as `checked` does."""
    saved = checked(folder, kind)
    with Undrawn():
        model: Model = _from_card(card_file(folder), lambda: kind(config=saved.config))
    for name in _grown(saved.skeleton, saved.header):
        owner, _, leaf = name.rpartition(".")
        like = saved.header[name]
        setattr(model.get_submodule(owner), leaf, torch.empty(like.shape, dtype=like.dtype))
    state = read_tensors(saved.weights)
    model.load_state_dict(state, strict=False)  # compared above; only counters of batches may be missing
    model.card = saved.card
    return model.eval()


def _from_card[T](path: Path, make: Callable[[], T]) -> T:
    """What `make` makes of a card's config; its errors become a ValueError that names the card."""
    try:
        return make()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def config_of[C: Config](card: Card, kind: type[C]) -> C:
    """The config of a card. Raises ValueError, naming the field, for one that is unknown or wrong."""
    return config_from(card.config, kind)


def config_from[C: Config](content: Mapping[str, Any], kind: type[C]) -> C:
    """The config that the fields of a card make; raises as `config_of` does."""
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"the card has fields that {kind.__name__} does not know: {shown(unknown)}.")
    if issubclass(kind, Config):
        content = {**kind.older(content), **content}
    listed = content.items()
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in listed}
    if isinstance(values.get("recipe"), dict):
        values["recipe"] = _recipe(values["recipe"])
    config = kind(**values)
    name = getattr(config, "encoder", None) or ""
    if not is_determined(name, getattr(config, "encoder_kwargs", {})):
        raise ValueError(
            f"encoder={name!r} is a hub name, and encoder_kwargs do not say how it is built; a model folder asks no "
            "hub. Save the model again with this version where the hub can be reached."
        )
    if name.startswith(HUB):
        colours = {"encoder_mean": IMAGENET[0], "encoder_std": IMAGENET[1]}
        config = replace(config, **{k: v for k, v in colours.items() if getattr(config, k) is None})
    return config


def _recipe(values: Mapping[str, Any]) -> Recipe:
    unknown = sorted(set(values) - {f.name for f in fields(Recipe)})
    if unknown:
        raise ValueError(f"recipe has fields that are unknown: {shown(unknown)}.")
    return Recipe(**values)


def _check_fit(path: Path, card: Card, skeleton: Model, header: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raise ValueError where the tensors of a file are not those of the network, or it takes far more memory.

    The names of the network's tensors begin with `prefix` in the file.
    """
    wanted = {prefix + key: value for key, value in skeleton.state_dict().items()}
    grown = _grown(skeleton, header, prefix)
    wrong = differences({key: header[key] if key in grown else value for key, value in wanted.items()}, header)
    rows = {name: len(header[name]) for name in grown}
    if not wrong and len(set(rows.values())) > 1:
        wrong = f"the banks have different lengths: {rows}"
    if wrong:
        raise ValueError(f"{path} does not fit a {card.model} of its card: {wrong}.")
    held = sum(each.nbytes for each in (*skeleton.parameters(), *skeleton.buffers()))
    if held > path.stat().st_size + SPARE_BYTES:
        raise ValueError(
            f"{path} does not fit a {card.model} of its card: that network holds {held / 1e6:.0f} MB, the file "
            f"{path.stat().st_size / 1e6:.0f} MB."
        )


def _grown(skeleton: Model, header: Mapping[str, Tensor], prefix: str = "") -> set[str]:
    """Buffers whose length training decides: without rows in a fresh model, with some in the file."""
    return {
        name
        for name, buffer in ((prefix + key, value) for key, value in skeleton.named_buffers())
        if buffer.ndim and len(buffer) == 0 and name in header and header[name].ndim == buffer.ndim
        and header[name].shape[1:] == buffer.shape[1:] and header[name].dtype == buffer.dtype
    }  # fmt: skip
