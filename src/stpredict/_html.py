"""HTML of what a notebook shows: tables and folded parts, in which nothing that is written can be code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MOST_GENES = 12  # shown without unfolding
_CELL = "text-align:left;vertical-align:top"


def text(value: object) -> str:
    """A value as text in HTML, on one line."""
    return escape(" ".join(str(value).split()))


def block(title: str, *parts: str) -> str:
    """A titled block; `parts` are HTML, the title is text."""
    return f"<div><strong>{text(title)}</strong>{''.join(parts)}</div>"


def line(said: str) -> str:
    """A line of text."""
    return f"<div>{text(said)}</div>"


def folded(title: str, content: str) -> str:
    """HTML that is shown when its title, a text, is clicked."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values, without those that are empty."""
    return table((), [(name, value) for name, value in rows if value not in (None, "", (), {})])


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts."""
    top = f"<thead><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td style="{_CELL}">{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def genes(names: Sequence[str]) -> str:
    """A list of genes, folded where it is long."""
    named = ", ".join(map(text, names[:MOST_GENES]))
    if len(names) <= MOST_GENES:
        return f"<div>{len(names)} genes: {named}</div>"
    return folded(f"{len(names)} genes: {', '.join(names[:MOST_GENES])}, ...", ", ".join(map(text, names)))
