"""The card of a model: what it is, what it saw, and how far it can be trusted."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = "stpredict-card/1"
WEIGHTS, CARD = "model.safetensors", "card.json"
_SHIPPED = Path(__file__).parent / "models" / "weights"


@dataclass(frozen=True)
class Card:
    """What `card.json` beside the weights says.

    model, config
        Class name of the model, and the fields of its frozen config.
    genes
        The ordered panel.
    mpp
        Micrometres per pixel at which the model sees.
    target, n_target_genes
        Units of its predictions, and how many genes stood behind the denominator of the target.
    sections
        Names of the training sections.
    weights_sha256
        Hash of `model.safetensors`; None before the model was saved.
    val_pcc
        Per-gene Pearson correlation on held-out data (`val_source` says which); the model's own reliability.
    scores
        Named scores with the protocol they follow, free of form.
    """

    model: str
    config: Mapping[str, Any]
    genes: tuple[str, ...]
    mpp: float
    target: str = "log1p_cp10k"
    n_target_genes: int | None = None
    encoder: str | None = None
    sections: tuple[str, ...] = ()
    seed: int | None = None
    val_pcc: Mapping[str, float | None] = field(default_factory=dict)
    val_source: str = ""
    scores: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "not stated"
    versions: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "stp-1"
    weights_sha256: str | None = None

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Raises FileNotFoundError where there is none, ValueError where it is no card of this format or lacks a field.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.parent} has no {path.name}; a model is a folder with model.safetensors and it."
            )
        try:
            content = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}. Save the model again with `model.save`.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} is not a card of stpredict: its format is {found!r}, expected {FORMAT!r}.")
        content.pop("format")
        known = {f.name for f in fields(cls)}
        missing = {"model", "config", "genes", "mpp"} - set(content)
        if missing or set(content) - known:
            raise ValueError(
                f"{path}: missing fields {sorted(missing)}, unknown fields {sorted(set(content) - known)}."
            )
        return cls(**content | {"genes": tuple(content["genes"]), "sections": tuple(content.get("sections", ()))})


def sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped() -> dict[str, Path]:
    """Names and folders of the trained models that come with the package."""
    folders = sorted(_SHIPPED.iterdir()) if _SHIPPED.is_dir() else []
    return {folder.name: folder for folder in folders if (folder / CARD).is_file()}


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a saved model: the name of one that comes with the package, or a path.

    Raises FileNotFoundError, naming the closest shipped names, where there is neither.
    """
    known = shipped()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    folder = Path(name_or_path)
    if not (folder / CARD).is_file():
        close = difflib.get_close_matches(str(name_or_path), known, n=1)
        raise FileNotFoundError(
            f"no model {str(name_or_path)!r}: it is neither a folder with a {CARD} nor one of the models that come "
            f"with the package, {sorted(known)}." + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return folder
