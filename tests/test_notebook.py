"""What a notebook shows of models, cards, histories and scores; one line and one bar a section."""

from __future__ import annotations

import dataclasses
import io
import logging
from functools import partial
from html.parser import HTMLParser

import pandas as pd
import pytest

from .tl.conftest import colour_sdata

GENES = tuple(f"g{i:02}" for i in range(40))
VOID = {"br", "hr", "img", "input", "meta"}


class Tags(HTMLParser):
    """Tags that are open, and all that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html: str) -> Tags:
    """The tags of a piece of HTML, each of which is closed."""
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    return tags


@pytest.fixture
def card():
    from stpredict._card import Card

    return Card(
        model="STNet", config={"genes": GENES, "mpp": 1.0, "lr": 0.1}, genes=GENES, mpp=1.0, sections=("A1",),
        about={"species": ("human",)}, val_pcc=dict.fromkeys(GENES, 0.25), val_source="B1",
        scores={"B1": {"ridge": 0.1}}, version="1.2.0",
    )  # fmt: skip


def test_a_card_is_short_and_its_genes_are_folded(card):
    html = card._repr_html_()
    tags = parsed(html)
    shown = html.split("<details>")[0] + "".join(part.split("</details>")[-1] for part in html.split("<details>")[1:])
    assert "g39" in html
    assert "g39" not in shown
    for said in ("STNet, card", "1.2.0", "human", "A1", "not saved yet"):
        assert said in shown
    assert "correlation on held-out shapes: 0.250, mean over 40 genes" in html
    assert tags.seen.count("details") == 4


def test_nothing_in_a_card_is_code(card):
    said = '<script>alert("x")</script>'
    about = {"species": (said,), said: ("b",)}
    card = dataclasses.replace(
        card, about=about, licence=said, sections=(said,), val_source=said, scores={said: {said: said}}, target=said
    )
    tags = parsed(card._repr_html_())
    assert "script" not in tags.seen
    assert said in "".join(tags.text)


def test_a_model_shows_its_card_once_it_has_one():
    import stpredict as stp

    model = stp.models.Ridge(GENES)
    html = model._repr_html_()
    parsed(html)
    assert "not trained" in html
    assert "40 genes: g00" in html
    shipped = stp.models.load("pixnet-her2st")
    html = shipped._repr_html_()
    assert "PixNet, card" in html
    assert "<details><summary>250 genes" in html
    parsed(html)


def test_history_and_scores_say_what_they_are_of():
    import stpredict as stp

    sdata = colour_sdata(0)
    model = stp.models.Ridge(("red", "green", "blue"))
    history = stp.tl.train(colour_sdata(1), model, progress=False, val=0)
    assert "a closed form: there are no epochs" in history._repr_html_()
    stp.tl.predict(sdata, model, progress=False)
    scores = stp.tl.evaluate(sdata, "ridge")
    html = scores._repr_html_()
    parsed(html)
    assert "protocol stp-2" in html
    assert "pcc_f" in html  # of the summary
    assert type(scores.head(1)) is pd.DataFrame
    assert list(scores.attrs["summary"].index) == ["image0"]


def test_a_long_history_is_folded_and_names_its_best_epoch():
    from stpredict._frames import HistoryFrame

    history = HistoryFrame({"epoch": range(30), "val_loss": [abs(k - 20) + 0.5 for k in range(30)]})
    html = history._repr_html_()
    parsed(html)
    assert "30 epochs; lowest validation loss 0.5, in epoch 20" in html
    assert "<details><summary>30 rows (epochs)</summary>" in html
    assert "<details>" not in HistoryFrame(history.head(3))._repr_html_()
    assert HistoryFrame({"a": [1]})._repr_html_() == pd.DataFrame({"a": [1]})._repr_html_()


def test_spots_are_spoken_of_once_a_section(caplog):
    import stpredict as stp

    caplog.set_level(logging.INFO, logger="stpredict")
    one, two = colour_sdata(0), colour_sdata(1)
    one.attrs["name"], two.attrs["name"] = "one", "two"
    for sdata in (one, two):
        stp.pp.gene_panel([sdata], n_genes=2)
    model = stp.models.Ridge(("red", "green", "blue"))
    stp.tl.train([one, two], model, progress=False)
    stp.tl.predict(one, model, progress=False)
    with pytest.warns(UserWarning, match="'one': this Ridge was trained on its image"):
        stp.tl.evaluate(one, "ridge")
    said = [record.message for record in caplog.records if "are used" in record.message]
    assert [line.split(":")[0] for line in said] == ["one", "two"]
    assert said[0].startswith("one: 30 of 30 shapes 'spots' are used; dropped: none")
    stp.clear_caches()
    with pytest.warns(UserWarning, match="was trained on its image"):
        stp.tl.evaluate(one, "ridge")
    assert len([record for record in caplog.records if "are used" in record.message]) == 3


def done(out: io.StringIO) -> list[str]:
    """The names of the bars that came to their end."""
    lines = out.getvalue().replace("\r", "\n").splitlines()
    return list(dict.fromkeys(line.split(":")[0] for line in lines if "100%" in line))


def test_one_bar_a_section_which_it_names(monkeypatch):
    import stpredict as stp
    from stpredict._inference import _chunks

    out, at_once = io.StringIO(), []

    class Bar(_chunks.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"file": out})
            at_once.append(len([bar for bar in type(self)._instances if not bar.disable]))
            assert self.leave

    monkeypatch.setattr(_chunks, "tqdm", Bar)
    sections = [colour_sdata(k) for k in range(2)]
    for k, sdata in enumerate(sections):
        sdata.attrs["name"] = f"s{k}"
    model = stp.models.Ridge(("red", "green", "blue"))
    stp.tl.train(sections[0], model, progress=False)
    stp.tl.predict(sections, model)
    assert done(out) == ["s0, 1/2", "s1, 2/2"]
    assert at_once == [1, 1]
    shown = out.getvalue()
    stp.tl.predict(sections, model, progress=False, overwrite=True)
    assert out.getvalue() == shown


def test_one_bar_a_training(monkeypatch, build):
    import stpredict as stp
    from stpredict._training import _bar

    out = io.StringIO()
    monkeypatch.setattr(_bar, "tqdm", partial(_bar.tqdm, file=out))
    model = build("STNet")
    stp.tl.train([colour_sdata(0), colour_sdata(1)], model, max_epochs=3, val=0.3)
    assert "training, epoch 3/3" in done(out)
    assert "description of the training tissue" in out.getvalue()
    assert "Ridge and ceiling on held-out shapes" in out.getvalue()
    assert out.getvalue().count("\n") == 1  # one line, which is left
    assert "val_loss=" in out.getvalue()


def test_the_bar_of_a_map_comes_to_its_end(monkeypatch):
    import stpredict as stp
    from stpredict._inference import _chunks

    out = io.StringIO()
    monkeypatch.setattr(_chunks, "tqdm", partial(_chunks.tqdm, file=out))
    sdata = colour_sdata(0)
    with pytest.warns(UserWarning, match="do not look like what the model was trained on"):
        stp.tl.predict(sdata, "pixnet-her2st", output="raster")
    assert done(out) == ["image"]
