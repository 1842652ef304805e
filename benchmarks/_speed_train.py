"""Training of PixNet: a step against a bare loop over the same windows, and the whole against another checkout of ours.

`python _speed_train.py EPOCHS` trains on three her2st sections, predicts the fourth and prints processor seconds and
PCC@M; which checkout it measures, PYTHONPATH says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TRAIN, TEST = ("C2", "C3", "C5"), "C4"


def whole(epochs: int) -> dict[str, float]:
    """Processor seconds of `tl.train` from the call to its return, and the score on a section that it has not seen."""
    import numpy as np
    import torch
    from _settings import DATA, pixnet

    import stpredict as stp

    sections = stp.datasets.her2st([*TRAIN, TEST], path=DATA / "her2st")
    panel = stp.pp.gene_panel(sections[:-1], n_genes=250, by="mean")
    torch.manual_seed(0)
    model = pixnet(panel)
    start = time.process_time()
    stp.tl.train(sections[:-1], model, val=0.0, max_epochs=epochs, seed=0, progress=False)
    seconds = time.process_time() - start
    stp.tl.predict(sections[-1], model, progress=False)
    scores = stp.tl.evaluate(sections[-1:], "pixnet")
    return {"seconds": seconds, "pcc": float(np.nanmean(scores["pcc"]))}


def against(other: Path, epochs: int = 20, *, threads: int = 1) -> str:
    """Both checkouts train at the same time, on as many threads each."""
    runs = {}
    for name, root in (("ours", Path(__file__).parents[1]), ("other", other)):
        env = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, str(epochs)]
        runs[name] = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    found = {name: json.loads(run.communicate()[0].splitlines()[-1]) for name, run in runs.items()}
    ratio = found["other"]["seconds"] / found["ours"]["seconds"]
    return (
        f"{epochs} epochs on {', '.join(TRAIN)}, both at once with {threads} thread each: the other takes "
        f"{ratio:.2f}x the processor seconds; PCC@M on {TEST} {found['ours']['pcc']:.4f}, the other "
        f"{found['other']['pcc']:.4f}"
    )


def bare(rounds: int, n_epochs: int = 2) -> str:
    """A step of ours, with all of Lightning around it, against forward, backward and step over windows cut before."""
    import numpy as np
    import torch
    from _settings import DATA, pixnet

    import stpredict as stp
    from stpredict import _spatialdata, _training
    from stpredict._malloc import keep_freed_memory
    from stpredict._training._module import EpochSampler
    from stpredict.nn.device import autocast, resolve_precision

    objects = stp.datasets.her2st(list(TRAIN), path=DATA / "her2st")
    panel = stp.pp.gene_panel(objects, n_genes=250, by="mean")
    model = pixnet(panel)
    sections = [_spatialdata.training_section(s, genes=model.genes, at_mpp=model.mpp) for s in objects]
    sections = [_training.held_in_memory(s, limit_bytes=2**30) for s in sections]
    device, recipe = torch.device("cpu"), model.recipe
    precision = resolve_precision("auto", device)
    samples = model.samples(sections, train=True, seed=0)
    found = []
    with keep_freed_memory():
        model.prepare(sections)
        for _ in range(rounds):
            indices = [i for epoch in range(n_epochs) for i in EpochSampler(len(samples), epoch)]
            n = n_epochs * (len(samples) // recipe.batch_size)
            windows = [samples.collate([samples[i] for i in indices[k * 8 : k * 8 + 8]]) for k in range(n)]
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
            model.train()
            start = time.perf_counter()
            for batch in windows:
                optimiser.zero_grad()
                with autocast(precision, device):
                    loss = model.loss(batch, model.query(batch.genes))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
                optimiser.step()
            middle = time.perf_counter()
            plan = _training.TrainOptions(max_epochs=n_epochs, lr=1e-5, progress=False, device="cpu")
            _training._loop(model, sections, [], plan, plan.recipe(recipe))
            found.append(((time.perf_counter() - middle) / n, (middle - start) / n))
    ratio = np.median([ours / loop for ours, loop in found])
    return f"{n} steps of {recipe.batch_size} windows: ours / bare loop {ratio:.2f} (median of {rounds} rounds)"


def table(rounds: int) -> str:
    lines = [bare(rounds)]
    if other := os.environ.get("STPREDICT_OTHER"):
        lines.append(against(Path(other)))
    else:
        lines.append("With STPREDICT_OTHER=<another checkout>, that is trained beside ours, and timed and scored.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(whole(int(sys.argv[1]))))
