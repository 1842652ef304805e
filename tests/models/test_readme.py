"""README of a saved model: what it says, and that nothing a card says can break out of its place."""

from __future__ import annotations

import dataclasses

import pytest

GENES = tuple(f"g{i}" for i in range(30))


@pytest.fixture
def card():
    from stpredict._card import Card

    return Card(
        model="STNet", config={"genes": GENES, "mpp": 1.0}, genes=GENES, mpp=1.0, sections=("A1", "A2"),
        about={"species": ("human",), "organ": ("breast",), "stain": ("H&E",), "patient": ("P1",)},
        val_pcc={gene: i / 50 for i, gene in enumerate(GENES)}, val_source="section B1",
        held_out={"ridge_pcc": dict.fromkeys(GENES, 0.125), "ceiling": dict.fromkeys(GENES, 0.5)},
        scores={"B1": {"stnet": {"pcc_m": 0.29, "mse": 0.4}, "ridge": {"pcc_m": 0.125}, "ceiling": 0.5}},
        licence="CC-BY-4.0", version="1.0.0", versions={"stpredict": "0.2.0"}, weights_sha256="ab" * 32,
    )  # fmt: skip


def test_it_says_what_is_asked_of_a_card(card):
    from huggingface_hub import ModelCard

    from stpredict.models import STNet
    from stpredict.models._readme import readme

    text = readme(card, info=STNet.info, name="hf://owner/name")
    data = ModelCard(text).data
    assert (data.license, data.library_name) == ("cc-by-4.0", "stpredict")
    for part in (
        "## Data", "| species | human |", "| organ | breast |", "| stain | H&E |", "| patient | P1 |", "Version 1.0.0",
        "## Scores, beside nulls", "| this model | 0.290 | 30 |", r"| Ridge on colour (a null) | 0.125 | 30 |",
        "| ceiling of the measurement | 0.500 | 30 |", "| B1 | stnet |  |  | 0.290 |  |  | 0.400 |  | 0.500 |",
        "## Limits", "It saw one patient", "5 of 30 genes were not predicted", "## Licence", "@misc{stnet2020",
        "<summary>all 30</summary>", 'stp.tl.predict(sdata, "hf://owner/name")',
    ):  # fmt: skip
        assert part in text, part


def test_it_says_what_it_does_not_know(card):
    from huggingface_hub import ModelCard

    from stpredict.models._readme import readme

    card = dataclasses.replace(
        card, about={}, val_pcc={}, held_out={}, scores={}, val_source="", licence="not stated", version=""
    )
    text = readme(card)
    assert ModelCard(text).data.license is None
    for part in ("No scores come with this model", "| species | not stated |", "does not say how many patients"):
        assert part in text


@pytest.mark.parametrize(
    "said", ["a | b", "<script>x</script>", "[x](http://y)", "`rm`", "two\n## lines", "---\nlicense: mit"]
)
def test_a_card_does_not_break_out(card, said):
    from huggingface_hub import ModelCard

    from stpredict.models._readme import readme

    about = {"species": (said,), "patient": (said,)}
    text = readme(dataclasses.replace(card, about=about, licence=said, sections=(said,), val_source=said))
    assert ModelCard(text).data.license_name == said
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "\n## lines" not in body
    row = next(line for line in body.splitlines() if line.startswith("| species"))
    assert row.replace(r"\|", "").count("|") == 3


def test_saving_writes_it_and_loading_does_not_look_at_it(card, tmp_path):
    import stpredict as stp

    model = stp.models.load("pixnet-her2st")
    model.save(tmp_path / "model", version="3.1")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "card.json",
        "model.safetensors",
    ]
    assert "Version 3.1" in (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "model" / "README.md").write_bytes(b"\xff\x00 anything")
    assert stp.models.load(tmp_path / "model").card.version == "3.1"
    model.save(tmp_path / "model", overwrite=True)
    assert "Version 3.1" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(ValueError, match="version='new' is no version"):
        model.save(tmp_path / "model", overwrite=True, version="new")
