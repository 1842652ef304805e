"""The registry: every entry is a public metric that does what it says, and the protocol's page lists the same."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from stpredict import metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
BESIDE = {"values": [], "array": ["grid"], "neighbours": ["graph"]}


def rows() -> list[str]:
    """The table of docs/protocol.md, as METRICS says it."""
    found = ["| metric | title | better | unit | needs | in `tl.evaluate` |", "|---|---|---|---|---|---|"]
    for name, metric in metrics.METRICS.items():
        shown = "yes" if metric.scores_layers else "no"
        found.append(f"| `{name}` | {metric.title} | {metric.better} | {metric.unit} | {metric.needs} | {shown} |")
    return found


def test_the_protocol_lists_the_registry():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [" ".join(line.split()) for line in lines if line.startswith("|")] == [" ".join(r.split()) for r in rows()]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_an_entry_is_a_public_function_of_what_it_needs(name: str):
    metric = metrics.METRICS[name]
    assert metric.function is getattr(metrics, name)
    parameters = inspect.signature(metric.function).parameters.values()
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    assert needed == ["pred", "true", *BESIDE[metric.needs]]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_what_is_better_and_what_is_free_of_scale_is_so(name: str):
    metric = metrics.METRICS[name]
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(range(12), range(12)), axis=-1).reshape(-1, 2)
    near = np.abs(grid[:, None] - grid[None]).sum(axis=2) == 1
    beside = {"values": [], "array": [grid], "neighbours": [sparse.csr_array(near.astype(float))]}[metric.needs]
    true = np.sin(grid / 3).sum(axis=1)[:, None] + rng.normal(0, 0.1, (len(grid), 3))
    bad = true + rng.normal(0, 1.0, true.shape)
    exact, worse = (metric.function(pred, true, *beside).mean() for pred in (true, bad))
    assert {"higher": exact > worse, "lower": exact < worse, "zero": abs(exact) < abs(worse)}[metric.better]
    scaled = metric.function(3 * bad + 1, true, *beside).mean()
    assert metric.scale_free == (scaled == pytest.approx(worse, rel=1e-9))
