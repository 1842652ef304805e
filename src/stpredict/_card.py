"""The card of a model: what it is, what it saw, and how far it can be trusted."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stpredict import _html
from stpredict._domain import Domain
from stpredict._schema import LARGEST_JSON, Range, check_fields, parse_json, shown

FORMAT = "stpredict-card/1"
WEIGHTS, CARD, README = "model.safetensors", "card.json", "README.md"
# while a model is saved over an older one
NEW_WEIGHTS, NEW_CARD, NEW_README = ".model.safetensors.new", ".card.json.new", ".README.md.new"
ERROR_LEVELS: Mapping[str, float] = {"error_80": 0.8, "error_90": 0.9}  # shares of absolute errors that are kept
HELD_OUT = ("rmse", *ERROR_LEVELS, "ridge_pcc", "ceiling")  # what a card may say of every gene beside its correlation
LIMITS: Mapping[str, Range] = {
    "mpp": (0.01, 1000.0),
    "cell_um": (1e-3, 1e6),
    "n_target_genes": (1, 10**7),
    "min_counts": (0.0, 1e12),
    "seed": (0, 2**63),
}
FIRST_VERSION = "0.1.0"  # of a model that was trained and not given another
_VERSION = re.compile(r"\d+(\.\d+){0,3}([.+-]?[A-Za-z0-9]+){0,4}")
_PACKAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FORMAT = re.compile(r"stpredict-card/(\d{1,6})")
_SHIPPED = Path(__file__).parent / "models" / "weights"
HUB_SCHEME = "hf://"


@dataclass(frozen=True)
class Card:
    """What `card.json` beside the weights says.

    Parameters
    ----------
    model : str
        Class name of the model.
    config : Mapping[str, Any]
        The fields of its frozen config.
    genes : tuple[str, ...]
        The ordered panel.
    mpp : float
        Micrometres per pixel at which the model sees.
    cell_um : float, optional
        Side of a cell of its map in micrometres (`Model.cell_um`); None for a model of spots, and in older cards.
    target : str, default "log1p_cp10k"
        Units of its predictions.
    n_target_genes : int, optional
        How many genes stood behind the denominator of the target.
    encoder : str, optional
        Name of its image encoder; None where it has none.
    sections : tuple[str, ...], default ()
        Names of the training sections.
    image_digests : tuple[str, ...], default ()
        Hashes of their images, by which a prediction of one of them is recognised; () in older cards.
    min_counts : tuple[float, ...], default ()
        Total counts that a shape of each of these needed to be trained on; () where it is not known (cards of older
        models), and where the target is no count.
    seed : int, optional
        Of the training.
    val_pcc : Mapping[str, float | None], optional
        Per-gene Pearson correlation on held-out data; the model's own reliability.
    val_source : str, default ""
        Which held-out data these are.
    held_out : Mapping[str, Mapping[str, float | None]], optional
        What else is known of each gene, by name, from the same held-out data: "rmse", the root of the mean squared
        error; "error_80" and "error_90", which that share of absolute errors does not exceed; "ridge_pcc", the
        correlation that Ridge reaches there; "ceiling", the one that a perfect predictor could reach.
    held_out_um2 : tuple[float, ...], default ()
        Smallest and largest area in square micrometres of the shapes that these errors are of.
    scores : Mapping[str, Any], optional
        Named scores with the protocol they follow, free of form.
    domain : Mapping[str, Any], optional
        Where the tissue it was trained on lies in colour, form and scale (`stpredict._domain.Domain.record`); empty in
        older cards and where the training sections were small.
    about : Mapping[str, Any], optional
        What the training sections are of, as far as their objects say: species, organ, technology, stain, patient, each
        a list of texts.
    licence : str, default "not stated"
        Terms under which the weights may be used.
    versions : Mapping[str, str], optional
        Versions of the packages that made it.
    protocol : str, default "stp-1"
        The numeric protocol of its scores.
    version : str, default ""
        Of the model itself, such as "1.2.0" (`Model.save` sets it); "" in older cards.
    weights_sha256 : str, optional
        Hash of `model.safetensors`; None before the model was saved.
    """

    model: str
    config: Mapping[str, Any]
    genes: tuple[str, ...]
    mpp: float
    cell_um: float | None = None
    target: str = "log1p_cp10k"
    n_target_genes: int | None = None
    encoder: str | None = None
    sections: tuple[str, ...] = ()
    image_digests: tuple[str, ...] = ()
    min_counts: tuple[float, ...] = ()
    seed: int | None = None
    val_pcc: Mapping[str, float | None] = field(default_factory=dict)
    val_source: str = ""
    held_out: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    held_out_um2: tuple[float, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    domain: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "not stated"
    versions: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "stp-1"
    version: str = ""
    weights_sha256: str | None = None

    def _repr_html_(self) -> str:
        """The card in a notebook: facts, what is known of its genes, and the rest folded."""
        known = sorted(((v, k) for k, v in self.val_pcc.items() if v is not None), reverse=True)
        target = self.target + (f" over {self.n_target_genes:,} genes" if self.n_target_genes else "")
        rows = [
            ("model", self.model), ("version", self.version), ("encoder", self.encoder),
            ("sees", f"{self.mpp:g} um per pixel"), ("maps", self.cell_um and f"cells of {self.cell_um:g} um"),
            ("predicts", target), ("trained on", ", ".join(self.sections)),
            *((name, ", ".join(values)) for name, values in self.about.items()),
            ("held out", self.val_source or "nothing"), ("licence", self.licence),
            ("weights, sha256", "not saved yet" if self.weights_sha256 is None else self.weights_sha256[:12]),
        ]  # fmt: skip
        parts = [_html.facts(rows), _html.genes(self.genes)]
        if known:
            mean = sum(v for v, _ in known) / len(known)
            title = f"correlation on held-out shapes: {mean:.3f}, mean over {len(known)} genes"
            parts.append(_html.folded(title, _html.table(("gene", "PCC"), [(k, f"{v:.3f}") for v, k in known])))
        for name in ("scores", "versions"):
            if of := getattr(self, name):
                parts.append(_html.folded(name, _html.facts((key, json.dumps(value)) for key, value in of.items())))
        config = {key: value for key, value in self.config.items() if key not in ("genes", "vocabulary")}
        parts.append(_html.folded("config", _html.facts((key, shown(value)) for key, value in config.items())))
        return _html.block(f"{self.model}, card", *parts)

    def write(self, path: Path) -> None:
        """Write the card as JSON.

        Parameters
        ----------
        path : Path
            The file.

        Raises
        ------
        ValueError
            For a card that `read` would refuse; it names the field.
        """
        check_card(self)
        path.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Parameters
        ----------
        path : Path
            The file.

        Returns
        -------
        Card
            The card.

        Raises
        ------
        FileNotFoundError
            Where there is none; it names the file.
        ValueError
            Where it is no card of this format, lacks a field, or has one of another type, out of its range, or at odds
            with another; it names the file.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.parent} has no {path.name}; a model is a folder with model.safetensors and it."
            )
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, which no card has.")
        content = parse_json(path.read_bytes(), str(path))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            if isinstance(found, str) and (number := _FORMAT.fullmatch(found)) and int(number[1]) > 1:
                raise ValueError(
                    f"{path} is a card of a newer format, {found!r}; this version reads {FORMAT!r}.{_made_by(content)} "
                    "Install a newer stpredict, or take a revision of the model from before."
                )
            raise ValueError(f"{path} is not a card of stpredict: its format is {shown(found)}, expected {FORMAT!r}.")
        content.pop("format")
        known = {f.name for f in fields(cls)}
        missing, unknown = sorted({"model", "config", "genes", "mpp"} - set(content)), sorted(set(content) - known)
        if missing or unknown:
            newer = _made_by(content) if unknown else ""
            raise ValueError(f"{path}: missing fields {shown(missing)}, unknown fields {shown(unknown)}.{newer}")
        content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        try:
            check_card(card := cls(**content))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return card


def _made_by(content: Mapping[str, Any]) -> str:
    """Which version a card says that made it, as a sentence after a space; "" where it does not say."""
    versions = content.get("versions")
    made = versions.get("stpredict") if isinstance(versions, dict) else None
    return f" It says that stpredict {shown(made)[1:-1]} made it." if isinstance(made, str) else ""


def check_version(version: str) -> None:
    """Raise ValueError for what is no version of a model."""
    if not (isinstance(version, str) and len(version) <= 40 and _VERSION.fullmatch(version)):
        raise ValueError(f"version={shown(version)} is no version; write numbers with points, such as '1.2.0'.")


def check_card(card: Card) -> None:
    """Raise ValueError, naming the field, for a wrong type or range, and where card and config disagree."""
    check_fields(vars(card), Card, LIMITS)
    if card.version:
        check_version(card.version)
    for gene, value in card.val_pcc.items():
        if value is not None and abs(value) > 1.001:  # a correlation, and what rounding adds to it
            raise ValueError(f"val_pcc of {shown(gene)} is {value:g}; a correlation lies in [-1, 1].")
    _check_held_out(card)
    Domain.from_record(card.domain)
    for name in card.versions:  # every result records them, and a store takes no other names
        if not _PACKAGE.fullmatch(name) or name == "zarr.json":
            raise ValueError(f"versions has {shown(name)}, which is no name of a package.")
    for name, value in card.about.items():
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"about.{shown(name)} must be a list of texts, got {shown(value)}.")
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in card.config.items()}
    for name, default in (("genes", ()), ("mpp", None), ("encoder", None)):
        stated, stands = getattr(card, name), config.get(name, default)
        if stated != stands:
            raise ValueError(
                f"{name} is {shown(stated)}, and config.{name} is {shown(stands)}: a card and its config name the same."
            )


def _check_held_out(card: Card) -> None:
    unknown = sorted(set(card.held_out) - set(HELD_OUT))
    if unknown:
        raise ValueError(f"held_out has {shown(unknown)}, which is unknown; there are {list(HELD_OUT)}.")
    for name, values in card.held_out.items():
        low = -1.001 if name == "ridge_pcc" else 0.0
        high = 1.001 if name in ("ridge_pcc", "ceiling") else float("inf")
        wrong = [gene for gene, value in values.items() if value is not None and not low <= value <= high]
        if wrong:
            raise ValueError(f"held_out: {name} of {shown(wrong[0])} is {values[wrong[0]]:g}, out of its range.")
    if card.held_out_um2 and not (len(card.held_out_um2) == 2 and 0 < card.held_out_um2[0] <= card.held_out_um2[1]):
        raise ValueError(f"held_out_um2={shown(card.held_out_um2)} must be two areas above 0, the smaller first.")


def card_file(folder: Path) -> Path:
    """The file that is the card of a folder.

    A model is saved over an older one by putting both new files beside the old, moving the weights and then the card.
    Once the new weights have been moved, a new card that still waits is the card of the folder.
    """
    moved = (folder / NEW_CARD).is_file() and not (folder / NEW_WEIGHTS).exists() and (folder / WEIGHTS).exists()
    return folder / (NEW_CARD if moved else CARD)


def read_card(folder: Path) -> Card:
    """The card of a model's folder; raises as `Card.read` does."""
    return Card.read(card_file(folder))


def sha256(path: Path) -> str:
    """Hash of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped() -> dict[str, Path]:
    """Names and folders of the trained models that come with the package."""
    folders = sorted(_SHIPPED.iterdir()) if _SHIPPED.is_dir() else []
    return {folder.name: folder for folder in folders if card_file(folder).is_file()}


def _held(folder: Path) -> str:
    """What a folder without a card holds, as the end of a sentence."""
    held = sorted(file.name for file in folder.iterdir())
    went_on = (
        " A training that was interrupted goes on with resume=True." if any(".ckpt" in name for name in held) else ""
    )
    return f"it holds {held[:8] or 'nothing'}.{went_on}"


def is_hub_name(name_or_path: str | Path) -> bool:
    """Whether a text names a model on a hub."""
    return isinstance(name_or_path, str) and name_or_path.startswith(HUB_SCHEME)


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a saved model: the name of one that comes with the package, or a path.

    Raises FileNotFoundError, naming the closest shipped name or model folder beside it, where there is neither.
    """
    known = shipped()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    folder = Path(name_or_path)
    if not card_file(folder).is_file():
        beside = folder.parent.glob(f"*/{CARD}") if folder.parent.is_dir() else ()
        there = {name.casefold(): name for name in (*known, *(str(card.parent) for card in beside))}
        close = [there[name] for name in difflib.get_close_matches(str(name_or_path).casefold(), there, n=1)]
        raise FileNotFoundError(
            f"no model {str(name_or_path)!r}: it is neither a folder with a {CARD} nor one of the models that come "
            f"with the package, {sorted(known)}; a model of a hub is named 'hf://owner/name'."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + (f" There is a folder {str(folder)!r}, without {CARD}: {_held(folder)}" if folder.is_dir() else "")
        )
    return folder
