"""The verbs, from train to reliability, and vectors of genes from their texts.

A verb is imported when it is first used: scoring a layer loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpredict._embeddings import GeneEmbeddings
    from stpredict.tl.aggregate import aggregate
    from stpredict.tl.benchmark import benchmark
    from stpredict.tl.embed import embed
    from stpredict.tl.embed_genes import embed_genes
    from stpredict.tl.evaluate import evaluate
    from stpredict.tl.intervals import intervals
    from stpredict.tl.predict import predict
    from stpredict.tl.query import query
    from stpredict.tl.reliability import reliability
    from stpredict.tl.report import report
    from stpredict.tl.train import train
    from stpredict.tl.unseen_genes import unseen_genes

__all__ = [
    "GeneEmbeddings",
    "aggregate",
    "benchmark",
    "embed",
    "embed_genes",
    "evaluate",
    "intervals",
    "predict",
    "query",
    "reliability",
    "report",
    "train",
    "unseen_genes",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    file = "stpredict._embeddings" if name == "GeneEmbeddings" else f"{__name__}.{name}"
    return getattr(importlib.import_module(file), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verbs(ModuleType):
    """A file and its verb have one name here, which is the verb's, whoever imports the file first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in __all__:  # the import system, which has just run that file
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs
