"""The files of a Visium HD folder: which is which, and whether they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stpredict.io._files import read_json_object
from stpredict.io._space_ranger import COUNTS, FOLDER, HD_POSITIONS, HIRES, SCALES, find_counts, find_image

BINS, SLICES = "binned_outputs", "feature_slice.h5"
PLACES = (".", "microscope_image", "image")  # where the full-resolution image is looked for
ROUNDED = 1.01  # the side of a bin in um over that in pixels may differ from the stated pixel by this factor


@dataclass(frozen=True)
class VisiumHD:
    """Where the files of one section are.

    Parameters
    ----------
    root : Path
        Folder that holds `binned_outputs/` and `feature_slice.h5`.
    prefix : str
        What stands before `_feature_slice.h5`; "" for the plain name.
    bins : tuple[Path, ...]
        The folder of each size of bins.
    image : Path
        The full-resolution image.
    mpp : float
        Micrometres per pixel of that image, as the scale factors state them.
    """

    root: Path
    prefix: str
    bins: tuple[Path, ...]
    image: Path
    mpp: float

    @property
    def scales(self) -> Path:
        """The scale factors."""
        return self.bins[0] / "spatial" / SCALES

    @property
    def hires(self) -> Path:
        """Space Ranger's reduced image, which may be absent."""
        return self.bins[0] / "spatial" / HIRES


def find_hd(path: Path, image: Path | None, sizes_um: Sequence[int]) -> VisiumHD:
    """The files of the folder `path` or of its `outs/`; `image` is the full-resolution image where it is given.

    Raises FileNotFoundError that names all that is missing, ValueError for a folder of another platform, for bins that
    it lacks, for several candidates and for scale factors without a scale.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    root = path / "outs" if (path / "outs").is_dir() else path
    _check_platform(path, root)
    bins = tuple(root / BINS / f"square_{size:03}um" for size in sizes_um)
    if not all(folder.is_dir() for folder in bins):
        there = [int(f.name[7:10]) for f in sorted((root / BINS).glob("square_[0-9][0-9][0-9]um")) if f.is_dir()]
        raise ValueError(f"bin_um={list(sizes_um)}: {root / BINS} has bins of {there} um. Pass bin_um= one of them.")
    slices = _slices(root)
    prefix = "" if slices is None else slices.name.removesuffix(SLICES).removesuffix("_")
    slide = image
    if slide is None:
        slide = find_image({folder / place for folder in (path, root) for place in PLACES}, prefix=prefix)
    missing = [] if slices is not None else [SLICES]
    for folder in bins:
        place = f"{BINS}/{folder.name}"
        if find_counts(folder) is None:
            missing.append(f"{place}/{COUNTS} (or the folder {FOLDER}/ of matrix.mtx, barcodes.tsv and features.tsv)")
        needed = [f"spatial/{name}" for name in (HD_POSITIONS, SCALES)]
        missing += [f"{place}/{name}" for name in needed if not (folder / name).is_file()]
    if slide is None:
        missing.append("the full-resolution image that Space Ranger was given (copy it there, or pass image=)")
    if missing or slide is None:
        raise FileNotFoundError(f"{root} lacks: {'; '.join(missing)}.")
    return VisiumHD(root, prefix, bins, slide, _mpp(bins))


def _check_platform(path: Path, root: Path) -> None:
    if (root / BINS).is_dir():
        return
    if root.name == BINS or (root / "spatial" / HD_POSITIONS).is_file():
        raise ValueError(f"{path} lies inside a Visium HD folder: pass the folder that holds {BINS}/ and {SLICES}.")
    if find_counts(root) is not None:
        raise ValueError(f"{path} holds no {BINS}/, so it is no Visium HD folder. io.read_visium reads Visium.")
    raise FileNotFoundError(f"{root} lacks: {BINS}/. Pass the folder that Space Ranger wrote for Visium HD.")


def _slices(root: Path) -> Path | None:
    plain, files = root / SLICES, sorted(root.glob(f"*_{SLICES}"))
    if plain.is_file():
        return plain
    if len(files) > 1:
        raise ValueError(f"{root} holds several sections: {[file.name for file in files]}. Keep one of them there.")
    return files[0] if files else None


def _mpp(bins: Sequence[Path]) -> float:
    """The `microns_per_pixel` of the scale factors, checked by the sides of the bins in pixels."""
    found = {}
    for folder in bins:
        path = folder / "spatial" / SCALES
        stated = read_json_object(path)
        values: list[Any] = [stated.get(key) for key in ("microns_per_pixel", "bin_size_um", "spot_diameter_fullres")]
        if not all(isinstance(value, int | float) and value > 0 for value in values):
            raise ValueError(
                f"{path} must state microns_per_pixel, bin_size_um and spot_diameter_fullres, each a positive number; "
                f"they are {values}. Copy the folder anew, or correct the file."
            )
        mpp, by_bins = float(values[0]), values[1] / values[2]
        if max(mpp, by_bins) > ROUNDED * min(mpp, by_bins):
            raise ValueError(
                f"{path} states {mpp:.4g} um per pixel, but bins of {values[1]:g} um that are {values[2]:.4g} px wide, "
                f"which is {by_bins:.4g}. Copy the folder anew, or correct the file."
            )
        found[folder.name] = mpp
    if max(found.values()) > ROUNDED * min(found.values()):
        raise ValueError(f"the bins disagree on microns_per_pixel: {found}. They belong to different runs.")
    return found[bins[0].name]
