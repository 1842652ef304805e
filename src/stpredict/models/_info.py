"""Metadata of a model class: paper, code, and their licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Where a model class comes from; None: not known, or there is none.

    Parameters
    ----------
    name : str
        Of the class.
    task : str
        Where its answer comes from, in one line.
    text_queried : {"no", "yes", "optional"}, default "no"
        Whether it can be asked for any gene that has a text: "no", "yes", or "optional" (an argument).
    title : str, optional
        Of the paper.
    authors : str, optional
        Of the paper, short, as in "He et al.".
    venue : str, optional
        Of the paper.
    year : int, optional
        Of the paper.
    doi, arxiv : str, optional
        Identifiers of the paper.
    code : str, optional
        Address of the authors' code.
    code_licence : str, optional
        Its licence.
    encoder : str, optional
        Image encoder that it is published with, by its timm or hub name.
    encoder_licence : str, optional
        The conditions of its weights.

    Examples
    --------
    >>> info = stp.models.ModelInfo(name="Mine", task="a network on the patch", authors="A. Author", year=2026)
    >>> info.paper
    'A. Author, 2026'
    """

    name: str
    task: str
    text_queried: Literal["no", "yes", "optional"] = "no"
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    year: int | None = None
    doi: str | None = None
    arxiv: str | None = None
    code: str | None = None
    code_licence: str | None = None
    encoder: str | None = None
    encoder_licence: str | None = None

    @property
    def paper(self) -> str:
        """Authors, venue and year, as far as they are known; "" for a model without a paper."""
        published = " ".join(str(each) for each in (self.venue, self.year) if each is not None)
        return ", ".join(each for each in (self.authors, published) if each)

    def bibtex(self) -> str:
        """An entry for a bibliography.

        Raises
        ------
        ValueError
            For a model without a paper.
        """
        if self.title is None:
            raise ValueError(
                f"{self.name} has no paper to cite; see models.list_models(trained=False) for those that do."
            )
        authors = None if self.authors is None else self.authors.replace(" et al.", " and others")
        fields = {
            "title": f"{{{self.title}}}", "author": authors, "year": self.year, "howpublished": self.venue,
            "doi": self.doi, "eprint": self.arxiv, "archiveprefix": self.arxiv and "arXiv",
        }  # fmt: skip
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value is not None]
        return f"@misc{{{self.name.lower()}{self.year or ''},\n" + ",\n".join(lines) + "\n}"
