"""Speed and memory, as ratios of what is measured side by side in one run.

    python benchmarks/speed.py                    # everything but monai and lazyslide: prints Markdown
    python benchmarks/speed.py readout raster     # some parts
    uv run --with monai python benchmarks/speed.py monai
    python benchmarks/speed.py lazyslide          # makes an environment of its own for it

Only the ratios mean anything on a processor whose speed changes. For a CUDA device there is `device.py`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable


def _part(module: str, name: str, *given: object) -> Callable[[int], str]:
    def run(rounds: int) -> str:
        return getattr(importlib.import_module(module), name)(*(given or (rounds,)))

    return run


PARTS: dict[str, tuple[str, Callable[[int], str]]] = {
    "readout": ("Read-out", _part("_speed_readout", "table")),
    "bins": ("A million bins", _part("_speed_readout", "million_bins", 1000, 250)),
    "predict": ("Prediction", _part("_speed_predict", "ratios")),
    "slide": ("From opening a store to its table", _part("_speed_slide", "table")),
    "domain": ("Whether a model knows the tissue", _part("_speed_domain", "table")),
    "train": ("Training", _part("_speed_train", "table")),
    "call": ("What a call costs beside its work", _part("_speed_call", "table")),
    "crops": ("Dense once against a crop for every shape", _part("_speed_predict", "crops")),
    "genes": ("More genes, more shapes", _part("_speed_predict", "genes")),
    "monai": ("MONAI", _part("_speed_predict", "monai")),
    "lazyslide": ("lazyslide", _part("_speed_lazyslide", "table")),
    "seams": ("Seams", lambda _: importlib.import_module("_speed_predict").seams()),
    "raster": ("Writing a raster", _part("_speed_raster", "table")),
    "memory": ("Peak memory", _part("_speed_predict", "memory")),
}
OTHERS = ("monai", "lazyslide")  # need packages that are not among our own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="default: all but monai and lazyslide")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name in args.parts or (name for name in PARTS if name not in OTHERS):
        title, part = PARTS[name]
        print(f"### {title}\n\n{part(args.rounds)}\n", flush=True)


if __name__ == "__main__":
    main()
