"""The verbs: train, predict, query, embed, aggregate, evaluate, benchmark; and vectors of genes from their texts."""

from stpredict._embeddings import GeneEmbeddings
from stpredict.tl.aggregate import aggregate
from stpredict.tl.benchmark import benchmark
from stpredict.tl.embed import embed
from stpredict.tl.embed_genes import embed_genes
from stpredict.tl.evaluate import evaluate
from stpredict.tl.predict import predict
from stpredict.tl.query import query
from stpredict.tl.train import train
from stpredict.tl.unseen_genes import unseen_genes

__all__ = [
    "GeneEmbeddings",
    "aggregate",
    "benchmark",
    "embed",
    "embed_genes",
    "evaluate",
    "predict",
    "query",
    "train",
    "unseen_genes",
]
