"""Frames that say what they are of: a training history and scores in a notebook, models where they are printed."""

from __future__ import annotations

from typing import Any

import pandas as pd

from stpredict import _html

FEW = 12  # rows that are shown without unfolding
WIDTH = 15  # of the names of what is said of a model


class HistoryFrame(pd.DataFrame):
    """A training history, one row an epoch; a part of it is a plain DataFrame."""

    def _repr_html_(self) -> str | None:
        """How long it trained and how well that went, above the epochs."""
        if "epoch" not in self:
            return _plain(self)
        said = f"{len(self)} epoch{'' if len(self) == 1 else 's'}"
        if "member" in self:
            said += f" of {self['member'].nunique()} members"
        elif "val_loss" in self and self["val_loss"].notna().any():
            best = self.loc[self["val_loss"].idxmin()]
            said += f"; lowest validation loss {best['val_loss']:.4g}, in epoch {int(best['epoch'])}"
        elif list(self.columns) == ["epoch"]:
            said = "a closed form: there are no epochs"
        return _html.block("Training history", _html.line(said), _rows(self, "epochs"))


class ScoresFrame(pd.DataFrame):
    """Scores, one row a gene and section; a part of it is a plain DataFrame."""

    def _repr_html_(self) -> str | None:
        """The summary of each section, above the genes."""
        summary = self.attrs.get("summary")
        if not isinstance(summary, pd.DataFrame):
            return _plain(self)
        said = f"protocol {self.attrs.get('protocol', 'not stated')}"
        return _html.block("Scores", _html.line(said), _plain(pd.DataFrame(summary).round(3)), _rows(self, "genes"))


class ModelsFrame(pd.DataFrame):
    """A list of models, one row each; a part of it is a plain DataFrame."""

    def __repr__(self) -> str:
        """A paragraph a model, for its columns are too many for a line; what is not known is left out."""
        known = [{name: value for name, value in row.items() if not _is_missing(value)} for _, row in self.iterrows()]
        paragraphs = ["\n".join(f"{name:<{WIDTH}} {value}" for name, value in row.items()) for row in known]
        return "\n\n".join(paragraphs) or super().__repr__()


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def named[F: pd.DataFrame](frame: pd.DataFrame, kind: type[F]) -> F:
    """The frame as one of this kind, with its attrs."""
    made = kind(frame)
    made.attrs = dict(frame.attrs)
    return made


def _rows(frame: pd.DataFrame, what: str) -> str:
    plain = _plain(frame)
    return plain if len(frame) <= FEW else _html.folded(f"{len(frame)} rows ({what})", plain)


def _plain(frame: pd.DataFrame) -> str:
    """What pandas shows of a frame, without attrs, which it compares where it cuts one."""
    plain: Any = pd.DataFrame(frame)
    plain.attrs = {}
    return str(plain._repr_html_() or "")
