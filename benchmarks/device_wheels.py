"""Fetch, as wheels in a folder, what a bare CUDA machine lacks for the device benchmark.

    python benchmarks/device_wheels.py wheels

A bare CUDA machine is one with Python 3.12 on x86-64 Linux, torch, timm, lightning, numba, scikit-learn, pandas, xarray
and what these need. The versions are those of this environment, so that the set that was tested is the set that
travels; pip fetches them from where it is set up to. More than 40 MB in all is refused.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_MB = 40.0
PLATFORMS = tuple(f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)) + ("manylinux2014_x86_64",)
# below the door: predictions from sections made by hand. Distribution -> what is imported
BELOW = {"shapely": "shapely"}
# at the door: SpatialData and what it imports; without pyogrio and imagecodecs, 50 MB for files that are not read here
DOOR = {
    "anndata": "anndata", "annotated-types": "annotated_types", "annsel": "annsel",
    "array-api-compat": "array_api_compat", "dask": "dask", "deprecated": "deprecated", "distributed": "distributed",
    "donfig": "donfig", "geopandas": "geopandas", "google-crc32c": "google_crc32c",
    "legacy-api-wrap": "legacy_api_wrap", "locket": "locket", "more-itertools": "more_itertools",
    "msgspec": "msgspec", "multiscale-spatial-image": "multiscale_spatial_image", "natsort": "natsort",
    "numcodecs": "numcodecs", "ome-zarr": "ome_zarr", "ome-zarr-models": "ome_zarr_models", "partd": "partd",
    "pathlib-abc": "pathlib_abc", "platformdirs": "platformdirs", "pooch": "pooch", "pydantic": "pydantic",
    "pydantic-core": "pydantic_core", "pydantic-settings": "pydantic_settings", "pydantic-zarr": "pydantic_zarr",
    "pyproj": "pyproj", "python-dotenv": "dotenv", "rangehttpserver": "RangeHTTPServer",
    "scverse-misc": "scverse_misc", "session-info2": "session_info2", "spatial-image": "spatial_image",
    "spatialdata": "spatialdata", "tblib": "tblib", "tornado": "tornado", "transformnd": "transformnd",
    "typing-inspection": "typing_inspection", "universal-pathlib": "upath", "xarray-dataclass": "xarray_dataclass",
    "zarr": "zarr", "zict": "zict",
}  # fmt: skip


def named(wheel: Path) -> str:
    """The distribution of a wheel, as it is written above."""
    return wheel.name.split("-")[0].replace("_", "-").lower()


def pip() -> list[str]:
    """How pip is run: that of this environment, else the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (found := shutil.which("pip")) is not None:
        return [found]
    raise SystemExit("there is no pip, neither in this environment nor on the path: install one.")


def fetch(folder: Path, wanted: list[str]) -> None:
    """Download wheels of these requirements, and nothing that they require. Raises SystemExit where pip cannot."""
    where = [f"--platform={each}" for each in PLATFORMS]
    command = [
        *pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12",
        "--implementation=cp", *where, f"--dest={folder}", *wanted,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip could not fetch the wheels:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheels go; those that are there are fetched anew")
    parser.add_argument("--below", action="store_true", help="only what predictions below SpatialData need")
    args = parser.parse_args()
    wanted = [*BELOW, *([] if args.below else DOOR)]
    here = {each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()}
    if absent := [name for name in wanted if name not in here]:
        raise SystemExit(f"not installed here, so no version is known: {absent}. Run it in the project's environment.")
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as aside:
        fetch(Path(aside), [f"{name}=={importlib.metadata.version(name)}" for name in wanted])
        wheels = sorted(Path(aside).glob("*.whl"), key=lambda each: -each.stat().st_size)
        total = sum(each.stat().st_size for each in wheels) / 1e6
        for each in wheels:
            print(f"{each.stat().st_size / 1e6:6.2f} MB  {each.name}")
        print(f"{total:6.2f} MB in {len(wheels)} wheels, at most {LIMIT_MB:.0f}")
        if missing := sorted(set(wanted) - {named(each) for each in wheels}):
            raise SystemExit(f"no wheel came for {missing}")
        if total > LIMIT_MB:
            raise SystemExit(f"{total:.1f} MB are more than {LIMIT_MB:.0f}; try --below. Nothing was kept.")
        for old in args.folder.glob("*.whl"):
            old.unlink()
        for each in wheels:
            each.rename(args.folder / each.name)


if __name__ == "__main__":
    main()
