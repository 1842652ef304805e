"""her2st: HER2+ breast tumours by legacy Spatial Transcriptomics (Andersson et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spatialdata import SpatialData

from stpredict._arguments import check_arguments
from stpredict._fetch import Remote, fetch
from stpredict.io import read_st

_BASE = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data"
# our name of a file: its place in the repository, its sha256
_FILES = {
    "C2.jpg": ("ST-imgs/C/C2/5714_HE_BT_C2.jpg", "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e"),
    "C3.jpg": ("ST-imgs/C/C3/5714_HE_BT_D1.jpg", "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568"),
    "C4.jpg": ("ST-imgs/C/C4/5714_HE_BT_D2.jpg", "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2"),
    "C5.jpg": ("ST-imgs/C/C5/5714_HE_BT_E1.jpg", "34028ea41e376396b50c42b0a11a7e689c85be4a8022e668d0a09cc128c04c65"),
    "C2.tsv.gz": ("ST-cnts/C2.tsv.gz", "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d"),
    "C3.tsv.gz": ("ST-cnts/C3.tsv.gz", "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a"),
    "C4.tsv.gz": ("ST-cnts/C4.tsv.gz", "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da"),
    "C5.tsv.gz": ("ST-cnts/C5.tsv.gz", "c0f310315ca6110d74dbdf7011e5b42432ba0b8eb5f001824764911988f39338"),
    "C2_selection.tsv": (
        "ST-spotfiles/C2_selection.tsv",
        "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
    ),
    "C3_selection.tsv": (
        "ST-spotfiles/C3_selection.tsv",
        "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
    ),
    "C4_selection.tsv": (
        "ST-spotfiles/C4_selection.tsv",
        "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
    ),
    "C5_selection.tsv": (
        "ST-spotfiles/C5_selection.tsv",
        "2114cc3b4da759772112897f1e247d5443c9f8c808e6a9a952eb4fda379a194c",
    ),
}
REGISTRY = {name: Remote(f"{_BASE}/{place}", sha256) for name, (place, sha256) in _FILES.items()}
SECTIONS = tuple(sorted({name[:2] for name in REGISTRY}))


def her2st(sections: str | Iterable[str], *, path: str | Path | None = None) -> list[SpatialData]:
    """Sections of HER2+ breast tumours: H&E, 100-um spots at a pitch of 200 um, raw counts, one object each.

    Parameters
    ----------
    sections : str | Iterable[str]
        Names such as "C2": the letter is the patient. Without `path`, those whose checksums are known: C2 to C5.
    path : str | Path, optional
        Folder with `{section}.jpg`, `{section}.tsv.gz` and `{section}_selection.tsv` of each section. None: the files
        are fetched (about 5 MB a section) into $STPREDICT_DATA_DIR or the user's cache, and checked.

    Returns
    -------
    list[SpatialData]
        The sections in the order asked, laid out as by `stpredict.io.read_st`.

    Raises
    ------
    ValueError
        For a section without known checksums.
    FileNotFoundError
        For files missing in `path`.

    References
    ----------
    Andersson et al., Nature Communications 12 (2021), 6012; files of github.com/almaan/her2st at 85df741. The
    repository states no licence: for research.
    """
    check_arguments(her2st, locals())
    names = [sections] if isinstance(sections, str) else list(sections)
    if path is None:
        unknown = [name for name in names if name not in SECTIONS]
        if unknown:
            raise ValueError(
                f"no checksums are known for sections {unknown}; those that can be fetched are {list(SECTIONS)}. "
                "For others give path=, a folder with your own copy."
            )
    return [_read(name, None if path is None else Path(path)) for name in names]


def _read(section: str, folder: Path | None) -> SpatialData:
    files = [f"{section}.tsv.gz", f"{section}.jpg", f"{section}_selection.tsv"]
    if folder is None:
        counts, image, spots = (fetch(file, REGISTRY, folder="her2st") for file in files)
        return _about(read_st(counts, image, spots, name=section))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        present = sorted(p.name.removesuffix("_selection.tsv") for p in folder.glob("*_selection.tsv"))
        below = sorted(str(p.parent) for p in folder.glob("*/*_selection.tsv")) if not present else []
        hint = f" There are some in {below[0]}." if below else ""
        raise FileNotFoundError(f"section {section!r}: no {missing} in {folder}. Sections there: {present}.{hint}")
    counts, image, spots = (folder / file for file in files)
    return _about(read_st(counts, image, spots, name=section))


def _about(sdata: SpatialData) -> SpatialData:
    """With what is known of the section in its attributes."""
    sdata.attrs |= {
        "species": "human", "organ": "breast", "technology": "Spatial Transcriptomics", "stain": "H&E",
        "patient": str(sdata.attrs["name"])[0],
    }  # fmt: skip
    return sdata
