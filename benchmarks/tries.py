"""Settings of the later baselines on the inner fold: trained on her2st C2 and C3, scored on C4.

    python benchmarks/tries.py                    # all of TRIES, one after the other
    python benchmarks/tries.py HE2RNA             # those of one class
    python benchmarks/tries.py --feature-cache features

Prints one line of JSON a try: class, settings, PCC@M on C4, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _settings import DATA, ENCODER, WEIGHTS

import stpredict as stp

TRIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # class, fields of its config, fields of its recipe
    ("EncoderRidge", {}, {}),
    ("HE2RNA", {}, {}),
    ("HE2RNA", {}, {"max_epochs": 20}),
    ("HE2RNA", {}, {"max_epochs": 150}),
    ("HE2RNA", {"side": 2}, {}),
    ("HE2RNA", {"side": 6}, {}),
    ("HE2RNA", {"side": 8}, {}),
    ("DeepSpot", {}, {}),
    ("DeepSpot", {}, {"max_epochs": 10}),
    ("DeepSpot", {}, {"max_epochs": 40}),
    ("DeepSpot", {"feature_dropout": 0.5}, {}),
    ("DeepSpot", {"feature_dropout": 0.5}, {"max_epochs": 40}),
    ("FEAST", {}, {}),
    ("FEAST", {}, {"max_epochs": 60}),
    ("FEAST", {"width": 256}, {}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="only these classes")
    parser.add_argument("--feature-cache", type=Path, help="folder where features of the frozen encoder are kept")
    args = parser.parse_args()
    train, test = (stp.datasets.her2st(names, path=DATA / "her2st") for names in (["C2", "C3"], ["C4"]))
    panel = tuple(stp.pp.gene_panel(train, n_genes=250))
    for name, changes, recipe in TRIES:
        if args.kinds and name not in args.kinds:
            continue
        start, key = time.perf_counter(), name.lower()
        config = getattr(stp.models, f"{name}Config")(genes=panel, **ENCODER, **changes)
        config = replace(config, recipe=replace(config.recipe, **recipe))
        model = getattr(stp.models, name)(config=config, encoder_weights=WEIGHTS, feature_cache=args.feature_cache)
        stp.tl.train(train, model, val=0, precision="32", progress=False)
        stp.tl.predict(test[0], model, precision="32", key_added=key, overwrite=True, progress=False)
        pcc = float(stp.tl.evaluate(test, key)["pcc"].mean())
        said = {"model": name, **changes, **recipe, "pcc": round(pcc, 4), "s": round(time.perf_counter() - start)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
