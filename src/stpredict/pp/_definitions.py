"""Tables of gene definitions: reading a user's own, and the cache that grows by one line for each gene."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

logger = logging.getLogger("stpredict")

CACHE_COLUMNS = ("gene", "definition", "source", "name", "prompt")
_SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}


@dataclass(frozen=True)
class Definition:
    """A text of a gene, where it came from, and the name under which it was found or asked there."""

    text: str
    source: str
    name: str


def clean(text: object) -> str:
    """A text on one line: every run of blanks, tabs and line breaks is one space; "" for a missing value."""
    return "" if text is None or text is pd.NA or text != text else " ".join(str(text).split())


def read_definitions(table: pd.DataFrame | str | Path) -> dict[str, Definition]:
    """gene -> definition, of a table with the columns gene and definition, or of its .tsv or .csv file.

    A column `source`, as `describe_genes` writes it, is kept; rows without a definition are left out.

    Raises FileNotFoundError for a file that is not there, ValueError for another kind of file, missing columns, and
    genes with two definitions.
    """
    if isinstance(table, pd.DataFrame):
        frame, what, source = table, "the table of definitions", "table"
    else:
        path = Path(table)
        frame, what, source = _read_file(path), str(path), path.name
    missing = [column for column in ("gene", "definition") if column not in frame]
    if missing:
        raise ValueError(
            f"{what} has no column {' and no column '.join(map(repr, missing))}; it has {list(frame.columns)[:8]}. "
            "Rename its columns to gene and definition."
        )
    sources = frame["source"] if "source" in frame else [source] * len(frame)
    found: dict[str, Definition] = {}
    duplicates = []
    for gene, text, origin in zip(frame["gene"], frame["definition"], sources, strict=True):
        name, definition = clean(gene), Definition(clean(text), clean(origin) or source, clean(gene))
        if not name or not definition.text:
            continue
        if name in found and found[name].text != definition.text:
            duplicates.append(name)
        found[name] = definition
    if duplicates:
        raise ValueError(
            f"{what} has two definitions of {duplicates[:5]} ({len(duplicates)} genes). Keep one row for each gene."
        )
    return found


def _read_file(path: Path) -> pd.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in _SEPARATORS:
        raise ValueError(
            f"source={str(path)!r} is not understood. It is 'symbol', 'ncbi', a table with columns gene and definition "
            "(a DataFrame, or a path that ends in .tsv or .csv), or a function from a prompt to a text."
        )
    if not path.is_file():
        raise FileNotFoundError(f"no table of definitions {path}.")
    return pd.read_csv(path, sep=_SEPARATORS[suffixes[-1]], dtype=str, keep_default_na=False)


class DefinitionCache:
    """Definitions that were paid for, in a table (.tsv) to which each is appended as it comes.

    Columns gene, definition, source, prompt; a row is one line. A last line that was torn by an interruption is cut
    off. Rows count for the prompt they were made with alone.

    Parameters
    ----------
    path : str | Path | None
        None: nothing is kept.

    Raises
    ------
    FileNotFoundError
        Where the folder is not there.
    ValueError
        Where the file is something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._rows: dict[str, tuple[Definition, str]] = {}
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cache={str(path)!r}: there is no folder {path.parent}. Make it first.")
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        header = _line(CACHE_COLUMNS)
        if not (whole.startswith(header) if whole else header.startswith(content)):
            raise ValueError(
                f"cache={str(path)!r} is no cache of describe_genes: it begins with {content.split(b'\n')[0][:80]!r}, "
                f"expected the columns {', '.join(CACHE_COLUMNS)}. Pass a table of definitions as `source`, and a new "
                "path as `cache`."
            )
        rows = list(csv.reader(io.StringIO(whole.decode()), delimiter="\t"))[1:]
        broken = [i for i, row in enumerate(rows, start=2) if len(row) != len(CACHE_COLUMNS)]
        if broken:
            raise ValueError(f"cache={str(path)!r} is damaged: line {broken[0]} is no row. Delete that line.")
        self._rows = {gene: (Definition(text, source, name), prompt) for gene, text, source, name, prompt in rows}
        if len(whole) < len(content):
            logger.warning("%s: its last line was torn by an interruption and is made again.", path)
            with path.open("r+b") as file:
                file.truncate(len(whole))
        if not whole:
            self._append(header)

    def take(self, prompts: Mapping[str, str]) -> dict[str, Definition]:
        """Those of the genes (gene -> prompt) that are there.

        Raises ValueError where a gene's definition was made with another prompt.
        """
        found = {gene: self._rows[gene] for gene in prompts if gene in self._rows}
        other = [gene for gene, (_, prompt) in found.items() if prompt != prompts[gene]]
        if other:
            raise ValueError(
                f"cache={str(self.path)!r} holds definitions of {len(other)} genes that were made with another prompt: "
                f"{self._rows[other[0]][1]!r}, now {prompts[other[0]]!r}. Pass that template, or another path."
            )
        return {gene: definition for gene, (definition, _) in found.items()}

    def add(self, made: Mapping[str, Definition], prompts: Mapping[str, str]) -> None:
        """Keep definitions (gene -> definition), in one write; they are on the disk when this returns."""
        lines = (_line((gene, d.text, d.source, d.name, prompts[gene])) for gene, d in made.items())
        self._append(b"".join(lines))
        self._rows.update({gene: (definition, prompts[gene]) for gene, definition in made.items()})

    def kept(self, n: int) -> str:
        """What became of n definitions, for the message that tells of an interruption."""
        if self.path is None:
            return f"The {n} definitions made so far are lost; with cache=PATH they are kept."
        return f"{n} definitions are kept in {self.path}; the same call goes on from there."

    def _append(self, lines: bytes) -> None:
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())


def _line(values: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerow([clean(value) for value in values])
    return text.getvalue().encode()
