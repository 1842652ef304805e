"""What is said of every method: in one place, and the same in the documentation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def pages():
    """docs/_pages.py, which makes parts of the documentation from the package."""
    spec = importlib.util.spec_from_file_location("_pages", DOCS.with_name("_pages.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_class_says_where_it_comes_from(model_name):
    from stpredict import models

    info = getattr(models, model_name).info
    assert info.name == model_name
    assert info.task and "\n" not in info.task
    assert (info.title is None) == (model_name in ("Mean", "Ridge", "EncoderRidge"))


def test_docs_have_the_row_of_every_class(model_name, pages):
    from stpredict import models

    info = getattr(models, model_name).info
    paper = info.paper or "none: a null"
    code = "" if info.code is None else f"[code]({info.code})" + (f", {info.code_licence}" if info.code_licence else "")
    row = f"| `{model_name}` | {paper} | {code} | {info.task} |"
    assert row in pages.classes().splitlines(), row


def test_docs_have_the_card_of_every_trained_model(pages, tmp_path):
    from stpredict import models

    pages.write(tmp_path)
    text = DOCS.read_text(encoding="utf-8")
    for name in ("classes.inc", "shipped.inc"):
        assert (tmp_path / name).stat().st_size > 1000
        assert f"```{{include}} generated/{name}" in text
    shipped = (tmp_path / "shipped.inc").read_text(encoding="utf-8")
    for name in models.list_models()["name"]:
        assert f"| `{name}` |" in shipped
        assert f"### The card of {name}" in shipped
        assert f"#### {name}: Limits" in shipped


def test_whether_it_is_text_queried_is_what_models_answer(build, model_name):
    from stpredict import models

    said = getattr(models, model_name).info.text_queried
    assert build(model_name).is_text_queried == (said == "yes")
    assert (said == "optional") == (model_name == "PixNet")


def test_the_classes_are_a_table():
    from stpredict import models

    table = models.list_models(trained=False).set_index("name")
    assert table.loc["PixNet", "arxiv"] == "2503.01347"
    assert table.loc["BLEEP", "code_licence"] == "Apache-2.0"
    assert table.loc["Ridge", "title"] is None
    assert isinstance(models.list_models(), pd.DataFrame)
    assert "licence" in models.list_models(trained=True).columns


@pytest.mark.parametrize("trained", [True, False])
def test_a_printed_list_of_models_leaves_nothing_out(trained):
    from stpredict import models

    table = models.list_models(trained=trained)
    printed = repr(table)
    for _, row in table.iterrows():
        assert all(str(value) in printed for value in row.dropna())
    assert repr(table.iloc[:0])  # none
    assert type(table[["name"]]) is pd.DataFrame


def test_an_entry_for_a_bibliography():
    from stpredict import models

    text = models.cite("GeneQuery")
    assert text.startswith("@misc{genequery2025,\n")
    assert text.count("{") == text.count("}")
    fields = dict(re.findall(r"^  (\w+) = \{(.*?)\},?$", text, re.MULTILINE))
    assert fields["author"] == "Xiong and others"
    assert fields["eprint"] == "2411.18391"
    assert fields["year"] == "2025"
    assert "author" not in models.cite("PixNet")  # not known


def test_what_has_no_paper_is_said():
    from stpredict import models

    with pytest.raises(ValueError, match="Ridge has no paper to cite"):
        models.cite("Ridge")
    with pytest.raises(ValueError, match=r"name='Pixnet' is no model class; there are \['BLEEP'"):
        models.cite("Pixnet")
