"""The page of the ten commonest errors: each message is the one that its code gives."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from .test_doc_examples import fresh

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"
TEXT = PAGE.read_text(encoding="utf-8")
PYTHON = r"^```python\n(.*?)^```"
SETUP = re.findall(PYTHON, TEXT, flags=re.MULTILINE | re.DOTALL)[0]
CASES = re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```\n\n```text\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def said(code: str, names: dict) -> str:
    """The message of the error that the code raises, else those of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            exec(compile(code, str(PAGE), "exec"), names)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
    return "\n".join(str(each.message) for each in caught)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("errors"))
        exec(compile(SETUP, str(PAGE), "exec"), names)
        yield names


def test_there_are_ten():
    assert len(CASES) == 10


@pytest.mark.parametrize(("title", "code", "message"), CASES, ids=[title for title, *_ in CASES])
def test_the_message_is_that_of_the_code(setup, title, code, message):
    found, wanted = (" ".join(text.split()) for text in (said(code, fresh(setup)), message))
    assert re.fullmatch(".*".join(map(re.escape, wanted.split(" ... "))), found), f"{found}\n\nis not\n\n{wanted}"
