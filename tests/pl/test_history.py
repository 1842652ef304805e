"""The course of training as it was logged."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stpredict import pl


@pytest.fixture
def course() -> pd.DataFrame:
    epochs = np.arange(6)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "train_loss": 1.0 / (1 + epochs),
            "val_loss": [1.0, np.nan, 0.6, 0.5, 0.7, np.nan],
            "val_pcc": [0.0, np.nan, 0.2, 0.3, 0.25, np.nan],
            "lr": 1e-3 * (1 - epochs / 6),
        }
    )


def _lines(ax: plt.Axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.column_stack(line.get_data()) for line in ax.lines}


def test_losses_are_drawn_and_nan_is_skipped(course: pd.DataFrame) -> None:
    ax = pl.history(course)
    lines = _lines(ax)
    np.testing.assert_array_equal(lines["training loss"], course[["epoch", "train_loss"]])
    np.testing.assert_array_equal(lines["validation loss"], course[["epoch", "val_loss"]].dropna())
    np.testing.assert_array_equal(lines["lowest, epoch 3"], [[3, 0.5]])


def test_correlation_and_learning_rate_stand_beside(course: pd.DataFrame) -> None:
    ax = pl.history(course)
    right, ground = (other for other in ax.figure.axes if other is not ax)
    np.testing.assert_array_equal(_lines(right)["validation PCC (right)"], course[["epoch", "val_pcc"]].dropna())
    assert len(ground.collections) == 1
    assert ground.get_zorder() < ax.get_zorder()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [
        "training loss",
        "validation loss",
        "lowest, epoch 3",
        "validation PCC (right)",
        "learning rate, peak 0.001",
    ]


def test_losses_alone_need_one_axes(course: pd.DataFrame) -> None:
    figure, ax = plt.subplots()
    assert pl.history(course[["epoch", "train_loss"]], ax=ax) is ax
    assert figure.axes == [ax]
    assert list(_lines(ax)) == ["training loss"]


@pytest.mark.parametrize("columns", [["train_loss"], ["epoch", "val_pcc"], []])
def test_what_is_no_history(course: pd.DataFrame, columns: list[str]) -> None:
    with pytest.raises(ValueError, match="a training history has a column 'epoch'"):
        pl.history(course[columns])


def test_members_of_an_ensemble_have_a_line_each():
    epochs = {"epoch": [0, 1, 2, 0, 1], "val_loss": [3.0, 2.0, 1.0, 4.0, 0.5], "lr": [1.0, 0.5, 0.1, 0.5, 1.0]}
    ax = pl.history(pd.DataFrame({"member": [0, 0, 0, 1, 1]} | epochs))
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [[3.0, 2.0, 1.0], [4.0, 0.5], [0.5]]  # the last marks the lowest of all
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "validation loss", "lowest, epoch 1", "learning rate, peak 1",
    ]  # fmt: skip
    plt.close(ax.figure)
