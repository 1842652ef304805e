"""A file that is cut short, emptied or something else ends in an error that names it, or the folder it is in."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.io import test_read_hest, test_read_visium, test_read_visium_hd, test_read_xenium

from stpredict import io, pp
from stpredict._messages import UnreadableFile

# libraries leave a file open that they could not read
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

READERS: dict[str, tuple[Callable, Callable]] = {
    "read_visium": (lambda root: test_read_visium.make_slide(root).root, io.read_visium),
    "read_visium_hd": (test_read_visium_hd.make_folder, io.read_visium_hd),
    "read_xenium": (test_read_xenium.make_folder, io.read_xenium),
    "read_hest": (lambda root: test_read_hest.write(root, "a", test_read_hest.make()) or root, io.read_hest),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda found: found[: len(found) // 2],
    "empty": lambda found: b"",
    "a page of a web server": lambda found: b"<html>403 Forbidden</html>\n" * 40,
    "an object without fields": lambda found: b"{}",
}


def test_a_damaged_image_is_no_damaged_store(tmp_path):
    path = tmp_path / "slide.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:20000])
    sdata = io.read_image(path, mpp=0.5)
    with pytest.raises(UnreadableFile) as caught:
        pp.tissue(sdata)
    assert str(caught.value).startswith(f"{path} cannot be read (OSError")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path} is empty: it has 0 bytes"):
        io.read_image(path)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; pass the image file"):
        io.read_image(tmp_path)


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_damaged_image_is_named_when_it_is_opened_or_read(suffix, damage, tmp_path):
    path = tmp_path / f"slide{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    else:
        Image.fromarray(pixels).save(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises((ValueError, OSError)) as caught:
        io.read_image(path, mpp=0.5).images["image"]["scale0"].image.to_numpy()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (file, damage)
        for file in ("counts", "image", "spots")
        for damage in DAMAGES
        if (file, damage) != ("spots", "cut short")  # half of the spots are an array, too
    ],
)
def test_a_damaged_file_of_an_array_is_named(st_files, file, damage):
    path = getattr(st_files, file)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises((ValueError, OSError)) as caught:
        sdata = io.read_st(st_files.counts, st_files.image, st_files.spots)
        sdata.images["image"]["scale0"].image.to_numpy()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("reader", list(READERS))
def test_a_damaged_file_is_named(reader, damage, tmp_path):
    make, read = READERS[reader]
    whole = Path(make(tmp_path / "whole"))
    n_refused = 0
    for file in sorted(path for path in whole.rglob("*") if path.is_file()):
        folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
        broken = folder / file.relative_to(whole)
        broken.write_bytes(DAMAGES[damage](broken.read_bytes()))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
        except (ValueError, OSError) as error:
            assert str(folder) in str(error), f"{file.name}: {type(error).__name__}: {error}"
            n_refused += 1
        shutil.rmtree(folder)
    assert n_refused >= 2  # some files may be absent, and pixels are read later
