"""The scale that nuclei show, on the real sections, where the right one is said and where one is said that is wrong.

Run as ``python benchmarks/nuclei.py [folder of the data]``; prints the table of docs/concepts.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stpredict import io
from stpredict._spatialdata import picture_mpp

SECTIONS = {
    "her2st C2": ("her2st/C2.jpg", 0.69),
    "her2st C3": ("her2st/C3.jpg", 0.69),
    "her2st C4": ("her2st/C4.jpg", 0.69),
    "her2st C5": ("her2st/C5.jpg", 0.69),
    "mouse colon": ("mouse_colon/d0_he.jpg", 0.971),
    "her2st A1": ("her2st_A/A1.jpg", 3.18),
    "MOB 1": ("mob/MOB1_he.jpg", 3.44),
    "MOB 1, finer": ("mob/MOB1_he_2.75um.jpg", 2.75),
    "MOB 11, finer": ("mob/MOB11_he_2.75um.jpg", 2.75),
}
FACTORS = (1 / 1.6, 1.0, 1.6)


def main(folder: Path) -> None:
    """Print a row a section: what is seen, and by which factor that differs from what was said."""
    print("| section | right | said / 1.6 | said right | said x 1.6 |\n|---|---|---|---|---|")
    for name, (file, mpp) in SECTIONS.items():
        sdata, cells = io.read_image(folder / file), []
        for factor in FACTORS:
            said = mpp * factor
            seen = picture_mpp(sdata, "image", said)
            off = "" if seen is None else f"{seen:.2f} ({max(seen, said) / min(seen, said):.2f}x)"
            cells.append(off or "not resolved")
        print(f"| {name} | {mpp} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "shared" / "data")
