"""GeneQuery's prediction against a plain loop of the paper's formula with explicit attention matrices.

    python benchmarks/genequery_speed.py --rounds 5

Side by side in one run, 2 threads, the allocator set on both sides (freed memory is kept), float32. Spots as context:
2,400 spots, one gene after the other. Genes as context: 3,467 genes, one spot after the other. Added memory is the
largest resident set while one side runs, above that before, in a process of its own. Prints Markdown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import torch
from torch import Tensor

from stpredict._malloc import keep_freed_memory
from stpredict.models import GeneQuery
from stpredict.tl import GeneEmbeddings

SIZES = {"spot": (2400, 4), "gene": (4, 3467)}  # spots, genes


def build(context: str) -> tuple[GeneQuery, Tensor, Tensor]:
    """A model with random weights, latent rows of its spots, and the query of its genes."""
    torch.manual_seed(0)
    n_spots, n_genes = SIZES[context]
    genes = tuple(f"g{i}" for i in range(n_genes))
    vectors = np.random.default_rng(0).normal(size=(n_genes, 384)).astype(np.float32)
    embeddings = GeneEmbeddings(genes=genes, vectors=vectors, encoder="random")
    config = replace(GeneQuery(genes, embeddings=embeddings, context=context).config, encoder="mobilenetv2_050")
    model = GeneQuery(config=config, embeddings=embeddings).eval()
    return model, torch.randn(n_spots, config.width), model.query(genes).detach()


def block(b: torch.nn.Module, x: Tensor) -> Tensor:
    """One block on one sequence (n, d): the attention matrix is made, softmaxed and multiplied."""
    q, k, v = b.qkv(b.attention_norm(x)).reshape(len(x), 3, b.heads, -1).permute(1, 2, 0, 3)
    shares = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
    x = x + b.out((shares @ v).transpose(0, 1).reshape(len(x), -1))
    return x + b.mlp(x)


def loop(model: GeneQuery, latent: Tensor, query: Tensor) -> Tensor:
    """The paper's formula, one gene (or one spot) after the other."""
    width, spots = int(model.config.text["width"]), model.context == "section"
    columns = []
    for row in query[:, :width] if spots else latent:
        x = latent + model.gene_projection(row) if spots else row + model.gene_projection(query[:, :width])
        for b in model.blocks:
            x = block(b, x)
        columns.append(model.scalar(x)[:, 0])
    scaled = torch.stack(columns, dim=1 if spots else 0)
    return query[:, -3] + query[:, -2] * scaled


def peak_mb(context: str, side: str) -> float:
    """What one side adds to the peak of a fresh process, in MB."""
    out = subprocess.run(
        [sys.executable, __file__, "--peak", context, side], capture_output=True, text=True, check=True
    )
    return float(out.stdout.split()[-1])


def print_peak(context: str, side: str) -> None:
    model, latent, query = build(context)
    process, done, seen = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.inference_mode():
        (model.head if side == "ours" else lambda a, b: loop(model, a, b))(latent, query)
    done.set()
    watcher.join()
    print((seen[0] - before) / 2**20)


def compare(context: str, rounds: int) -> tuple[float, float]:
    """The median ratio of seconds over rounds, side by side, and the largest difference of the answers."""
    model, latent, query = build(context)
    sides = {"loop": lambda: loop(model, latent, query), "ours": lambda: model.head(latent, query)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, Tensor] = {}
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first round warms up
            for side, call in sides.items():
                start = time.perf_counter()
                answers[side] = call()
                seconds[side].append(time.perf_counter() - start)
    ratio = float(np.median(np.array(seconds["loop"][1:]) / np.array(seconds["ours"][1:])))
    return ratio, float((answers["ours"] - answers["loop"]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with keep_freed_memory():
        print_peak(*args.peak) if args.peak else print_table(args.rounds)


def print_table(rounds: int) -> None:
    print("| context | spots | genes | ratio | largest difference | added peak, loop | added peak, ours |")
    print("|---|---|---|---|---|---|---|")
    for context, (n_spots, n_genes) in SIZES.items():
        ratio, apart = compare(context, rounds)
        peaks = " | ".join(f"{peak_mb(context, side):.0f} MB" for side in ("loop", "ours"))
        print(f"| {context}s | {n_spots} | {n_genes} | {ratio:.2f}x | {apart:.1e} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()
