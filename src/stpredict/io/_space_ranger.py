"""The files of a Space Ranger folder: which is which, and whether they belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL.PngImagePlugin import PngImageFile

from stpredict.io._files import read_json_object, reading
from stpredict.io._matrix import is_matrix_folder
from stpredict.io._pixels import SUFFIXES

COUNTS, FOLDER = "filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix"
POSITIONS = ("tissue_positions_list.csv", "tissue_positions.csv")
HD_POSITIONS = "tissue_positions.parquet"
SCALES = "scalefactors_json.json"
HIRES = "tissue_hires_image.png"
DRAWN_UM = (50.0, 70.0)  # spot_diameter_fullres stands for 65 um in Space Ranger's files, for 55 in some others
OWN_IMAGES = ("tissue_hires", "tissue_lowres", "aligned_", "detected_", "cytassist_image")  # written, not given


@dataclass(frozen=True)
class SpaceRanger:
    """Where the files of one section are.

    Parameters
    ----------
    root : Path
        Folder that holds the counts and `spatial/`.
    prefix : str
        What stands before `_filtered_feature_bc_matrix.h5`; "" for the plain name.
    counts : Path
        That file, or the folder of matrix.mtx, barcodes.tsv and features.tsv where it is missing.
    positions, scales, hires, image : Path
        Tissue positions, scale factors, Space Ranger's reduced image (may be absent), the full-resolution image.
    """

    root: Path
    prefix: str
    counts: Path
    positions: Path
    scales: Path
    hires: Path
    image: Path


def find(path: Path, image: Path | None) -> SpaceRanger:
    """The files of the folder `path` or of its `outs/`; `image` is the full-resolution image where it is given.

    Raises FileNotFoundError that names all that is missing, ValueError for Visium HD and for more than one candidate.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    root = path if not (path / "outs").is_dir() else path / "outs"
    if (root / "binned_outputs").is_dir():
        raise ValueError(f"{path} is a Visium HD folder: read it with io.read_visium_hd, bin_um=.")
    if (root / "spatial" / HD_POSITIONS).is_file():
        raise ValueError(
            f"{path} is one bin folder of Visium HD: read the folder that holds binned_outputs/ with "
            "io.read_visium_hd, whose bin_um= chooses the bins."
        )
    counts = find_counts(root)
    positions = next((p for p in (root / "spatial" / name for name in POSITIONS) if p.is_file()), None)
    scales = root / "spatial" / SCALES
    slide = image if image is not None else find_image({path, root, path / "image", root / "image"})
    missing = {
        f"{COUNTS} (or the folder {FOLDER}/ of matrix.mtx, barcodes.tsv and features.tsv)": counts is None,
        f"spatial/{POSITIONS[1]} (or {POSITIONS[0]})": positions is None,
        f"spatial/{SCALES}": not scales.is_file(),
        "the full-resolution image that Space Ranger was given (copy it there, or pass image=)": slide is None,
    }
    if any(missing.values()) or counts is None or positions is None or slide is None:
        raise FileNotFoundError(f"{root} lacks: {'; '.join(what for what, absent in missing.items() if absent)}.")
    _check_header(positions)
    prefix = counts.name.removesuffix(".h5").removesuffix(FOLDER).removesuffix("_")
    return SpaceRanger(root, prefix, counts, positions, scales, root / "spatial" / HIRES, slide)


def find_counts(root: Path) -> Path | None:
    """The HDF5 file of filtered counts, else the folder of matrix.mtx that holds the same; ValueError for several."""
    files = sorted(root.glob(f"*{COUNTS}")) or [f for f in sorted(root.glob(f"*{FOLDER}")) if is_matrix_folder(f)]
    return _one(files, "counts")


def find_image(folders: set[Path], *, prefix: str = "") -> Path | None:
    """The one image in some folders that Space Ranger did not write itself; ValueError for several."""
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()]
    given = [file for file in files if not file.name.removeprefix(f"{prefix}_").startswith(OWN_IMAGES)]
    return _one(sorted(file for file in given if file.suffix.lower() in SUFFIXES), "images")


def _check_header(positions: Path) -> None:
    """Raise ValueError for a file of positions that lacks its header line, or has one under the older name."""
    with positions.open(encoding="utf-8") as file:
        first = file.readline().strip().split(",")
    headed, expected = not first[1:2] or not first[1].strip().isdigit(), positions.name == POSITIONS[1]
    if headed != expected:
        other = POSITIONS[0] if expected else POSITIONS[1]
        raise ValueError(
            f"{positions} {'has no' if expected else 'has a'} header line ({','.join(first)[:60]!r}), as files called "
            f"{other} have. Rename it to {other}."
        )


def check_image(image: Path, shape: tuple[int, int], *, hires: Path, scales: Path) -> None:
    """Raise ValueError where the image of `shape` (height, width) is not the one that Space Ranger reduced."""
    if not hires.is_file():
        return
    factor = _factor(scales, "tissue_hires_scalef")
    with reading(hires), PngImageFile(hires) as reduced:
        expected = reduced.height / factor, reduced.width / factor
    # the reduced image has whole pixels, and its factor is rounded
    if any(abs(side - full) > 1.5 / factor + 0.005 * full for side, full in zip(shape, expected, strict=True)):
        raise ValueError(
            f"{image} has {shape[1]} x {shape[0]} px, but the image that Space Ranger was given had about "
            f"{expected[1]:.0f} x {expected[0]:.0f} (by {HIRES} and {SCALES}). Give that one."
        )


def check_scale(folder: SpaceRanger, mpp: float) -> None:
    """Raise ValueError where the spot diameter in the scale factors and the pitch behind `mpp` do not fit."""
    diameter = _factor(folder.scales, "spot_diameter_fullres")
    if not DRAWN_UM[0] <= diameter * mpp <= DRAWN_UM[1]:
        raise ValueError(
            f"{folder.scales} gives spots of {diameter:.1f} px, which is {diameter * mpp:.0f} um at the pitch of "
            f"{folder.positions} ({100 / mpp:.1f} px for 100 um); 55 or 65 um are expected. The "
            "files do not belong together."
        )


def _factor(scales: Path, name: str) -> float:
    value = read_json_object(scales).get(name)
    if not (isinstance(value, int | float) and value > 0):
        raise ValueError(f"{scales} must state {name}, a positive number, but it is {value!r}; copy the file anew.")
    return float(value)


def _one(files: list[Path], what: str) -> Path | None:
    if len(files) > 1:
        way_out = "Keep one of them there, or pass image=." if what == "images" else "Keep one of them there."
        raise ValueError(f"{files[0].parent} holds several {what}: {[file.name for file in files]}. {way_out}")
    return files[0] if files else None
