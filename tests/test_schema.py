"""JSON of strangers, and fields against a dataclass: what is refused, and what the message names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest


@dataclass
class Fields:
    number: int = 1
    share: float = 0.5
    name: str | None = None
    kind: Literal["mean", "sum"] = "mean"
    sides: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 1.0)
    scores: Mapping[str, float | None] | None = None
    anything: Any = None
    flag: bool = False


@pytest.mark.parametrize(("fields", "said"), [
    ({"number": True}, "number=True must be an integer."),
    ({"number": 1.0}, "number=1.0 must be an integer."),
    ({"number": 10**30}, "must be an integer."),
    ({"number": 11}, r"number=11: must lie in \[1, 10\]."),
    ({"share": float("nan")}, "share=nan must be a finite number."),
    ({"share": float("inf")}, "share=inf must be a finite number."),
    ({"share": 10**400}, "must be a finite number."),
    ({"share": "1"}, "share='1' must be a finite number."),
    ({"name": b"x"}, "name=b'x' must be a text or None."),
    ({"name": "\ud800"}, "must be a text or None."),
    ({"kind": "max"}, "kind='max' must be one of 'mean', 'sum'."),
    ({"sides": (1, "2")}, "must be a list, each of it an integer."),
    ({"sides": (1, 99)}, r"sides=\(1, 99\): each value of it must lie in \[0, 9\]."),
    ({"sides": "12"}, "must be a list, each of it an integer."),
    ({"pair": (1,)}, "must be a list of 2: an integer, a finite number."),
    ({"scores": {"a": "b"}}, "must be a mapping of names, each to a finite number or None or None."),
    ({"scores": {1: 1.0}}, "must be a mapping of names"),
    ({"flag": 1}, "flag=1 must be true or false."),
])  # fmt: skip
def test_a_wrong_field_is_named(fields, said):
    from stpredict._schema import check_fields

    with pytest.raises(ValueError, match=said):
        check_fields(fields, Fields, {"number": (1, 10), "sides": (0, 9)})


def test_right_fields_pass():
    from stpredict._schema import check_fields

    right = {"number": np.int64(3), "share": np.float32(0.25), "name": "a", "sides": [1, 2], "pair": (1, 2)}
    check_fields(
        right | {"scores": {"a": None, "b": 1}, "anything": object(), "unknown": 1}, Fields, {"number": (1, 10)}
    )


@pytest.mark.parametrize(("text", "said"), [
    ("{", "it is not JSON"),
    (b"\xff\xfe\x00", "it is not JSON"),
    ("[" * 10**5, "it is not JSON that can be read: it is nested too deep."),
    ('{"a": [' * 10**5, "nested too deep"),
    ("NaN", "NaN is no JSON number"),
    ("[-Infinity]", "-Infinity is no JSON number"),
    ("1e400", "the number 1e400 is beyond what a float can hold"),
    ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
    ("9" * 5000, "it is not JSON"),
])  # fmt: skip
def test_json_that_no_one_should_read_is_refused(text, said):
    from stpredict._schema import parse_json

    with pytest.raises(ValueError, match=said):
        parse_json(text, "it")


def test_json_beyond_the_limit_is_not_parsed(monkeypatch):
    from stpredict import _schema

    monkeypatch.setattr(_schema, "LARGEST_JSON", 10)
    with pytest.raises(ValueError, match="it has 11 bytes, more than the 10"):
        _schema.parse_json(" " * 11, "it")
