"""The verbs: train, predict, aggregate, evaluate."""

from stpredict.tl.aggregate import aggregate
from stpredict.tl.evaluate import evaluate
from stpredict.tl.predict import predict
from stpredict.tl.train import train

__all__ = ["aggregate", "evaluate", "predict", "train"]
