"""Any of the tables as Markdown."""

from __future__ import annotations

import math

import pandas as pd

from stpredict._arguments import check_arguments


def markdown(table: pd.DataFrame, *, digits: int = 3) -> str:
    """A pipe table; columns (score, "mean") and (score, "sd") become one, mean ± sd.

    Parameters
    ----------
    table : DataFrame
        What a function of `stp.tables` returned.
    digits : int, default 3
        Decimals of what is no whole number. What is not defined is a dash.

    Returns
    -------
    str
        The table in Markdown.

    Raises
    ------
    ValueError
        For `digits` that are negative or more than 20.

    Examples
    --------
    >>> print(stp.tables.markdown(pd.DataFrame({"PCC": [0.31234]}, index=["PixNet"])))
    |  | PCC |
    |---|---|
    | PixNet | 0.312 |
    """
    check_arguments(markdown, locals())
    cells = pd.DataFrame(index=table.index)
    names = table.columns.get_level_values(0) if isinstance(table.columns, pd.MultiIndex) else table.columns
    for name in dict.fromkeys(names):
        part = table[name]
        if isinstance(part, pd.DataFrame):
            pairs = zip(part["mean"], part["sd"], strict=True)
            cells[_plain(name)] = [_spread(mean, sd, digits) for mean, sd in pairs]
        else:
            cells[_plain(name)] = [_number(value, digits) for value in part]
    index = [" | ".join(map(_plain, key)) if isinstance(key, tuple) else _plain(key) for key in table.index]
    heads = [_plain(name or "") for name in table.index.names]
    lines = ["| " + " | ".join([*heads, *cells.columns]) + " |", "|---" * (len(heads) + cells.shape[1]) + "|"]
    lines += ["| " + " | ".join([key, *row]) + " |" for key, row in zip(index, cells.to_numpy().tolist(), strict=True)]
    return "\n".join(lines)


def _spread(mean: float, sd: float, digits: int) -> str:
    return _number(mean, digits) + ("" if math.isnan(sd) else f" ± {_number(sd, digits)}")


def _number(value: object, digits: int) -> str:
    if value is pd.NA:
        return "—"
    if not isinstance(value, float):
        return _plain(value)
    if math.isnan(value):
        return "—"
    return f"{value:.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.{digits}f}"


def _plain(value: object) -> str:
    """A text in one cell: a pipe or the end of a line would end it."""
    return str(value).replace("|", "\\|").replace("\n", " ")
