"""Files as scanners and exporters write them: turned, in YCbCr, with holes, with a printer's resolution."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from spatialdata.transformations import get_transformation

from stpredict.io import read_image


def finest(sdata) -> np.ndarray:
    return np.asarray(sdata.images["image"]["scale0"]["image"].data)


def mpp_of(sdata) -> float | None:
    systems = get_transformation(sdata.images["image"], get_all=True)
    return float(systems["micrometers"].to_affine_matrix(("x",), ("x",))[0, 0]) if "micrometers" in systems else None


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def shown(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What Pillow shows of a picture with that tag, (3, y, x)."""
    image = Image.fromarray(picture)
    image.getexif()[274] = orientation
    return np.moveaxis(np.asarray(ImageOps.exif_transpose(image)), 2, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_tag_is_followed_as_pillow_does(tmp_path, picture, orientation, caplog):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    tag = [(274, 3, 1, orientation, True)]
    for name, options in {"strips.tif": {}, "tiles.tif": {"tile": (32, 32), "compression": "lzw"}}.items():
        tifffile.imwrite(tmp_path / name, picture, photometric="rgb", extratags=tag, **options)
    for name in ("a.png", "strips.tif", "tiles.tif"):
        caplog.clear()
        np.testing.assert_array_equal(finest(read_image(tmp_path / name)), shown(picture, orientation))
        assert bool([record for record in caplog.records if "orientation tag" in record.message]) == (orientation > 1)


@pytest.mark.parametrize("orientation", [3, 6])
def test_all_levels_and_the_sides_of_a_pixel_are_turned(tmp_path, orientation):
    full = np.random.default_rng(1).integers(0, 256, (256, 384, 3), dtype=np.uint8)
    tag = [(274, 3, 1, orientation, True)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        more = {"photometric": "rgb", "tile": (64, 64), "extratags": tag}
        writer.write(full, subifds=1, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **more)
        writer.write(full[::2, ::2], subfiletype=1, **more)
    sdata = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(finest(sdata), shown(full, orientation))
    np.testing.assert_array_equal(
        np.asarray(sdata.images["image"]["scale1"]["image"].data), shown(full[::2, ::2], orientation)
    )
    assert mpp_of(sdata) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [
    {"compression": "deflate"},
    {"compression": "lzw"},
    {"compression": "lzw", "planarconfig": "separate"},
    {"compression": None},
    {"compression": "jpeg"},
    {"compression": 33003},
])  # fmt: skip
def test_ycbcr_samples_become_rgb(tmp_path, options):
    colours = np.array([[210, 130, 170], [90, 50, 130], [255, 255, 255], [12, 200, 40]], np.uint8)
    rgb = np.repeat(np.repeat(colours.reshape(2, 2, 3), 64, 0), 64, 1)
    stored = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    if options["compression"] == "jpeg":
        stored = rgb  # the encoder converts by itself
    if options.get("planarconfig"):
        stored = np.moveaxis(stored, 2, 0)
    photometric = "rgb" if options["compression"] == "jpeg" else "ycbcr"
    subsampling = {} if options["compression"] in ("jpeg", 33003) else {"subsampling": (1, 1)}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, tile=(64, 64), **subsampling, **options)
    got = finest(read_image(tmp_path / "a.tif"))[:, 32::64, 32::64].reshape(3, -1).T
    assert np.abs(got.astype(int) - colours).max() <= (4 if options["compression"] in ("jpeg", 33003) else 2)


def test_tiles_that_an_export_left_out_are_white(tmp_path):
    rgb = np.full((300, 400, 3), (215, 150, 190), np.uint8)
    path = tmp_path / "export.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(128, 128), compression="deflate")
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        for tag, values in ((324, page.dataoffsets), (325, page.databytecounts)):
            page.tags[tag].overwrite([0, *list(values)[1:]])
    got = finest(read_image(path))
    assert (got[:, :128, :128] == 255).all()
    np.testing.assert_array_equal(got[:, :, 128:], np.moveaxis(rgb, 2, 0)[:, :, 128:])


@pytest.mark.parametrize(("per_unit", "unit", "mpp"), [
    (20_000, "CENTIMETER", 0.5),  # a scanner's
    (40_000, "CENTIMETER", 0.25),
    (200_000, "CENTIMETER", None),  # ten times too fine
    (72, "INCH", None), (300, "INCH", None), (4800, "INCH", None), (9600, "INCH", None),  # printers and screens
    (25_400 / 2.75, "INCH", 2.75),  # no printer's
])  # fmt: skip
def test_only_a_slide_scanners_resolution_is_taken(tmp_path, picture, per_unit, unit, mpp):
    tifffile.imwrite(
        tmp_path / "a.tif", picture, photometric="rgb", resolution=(per_unit, per_unit), resolutionunit=unit
    )
    found = mpp_of(read_image(tmp_path / "a.tif"))
    assert found is None if mpp is None else found == pytest.approx(mpp, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "unit", "mpp"), [(0.5, "µm", 0.5), (500, "nm", 0.5), (0.5, "mm", None), (1, "m", None)]
)
def test_only_a_slide_scanners_ome_size_is_taken(tmp_path, picture, size, unit, mpp):
    sizes = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", picture, photometric="rgb", metadata={"axes": "YXS", **sizes})
    found = mpp_of(read_image(tmp_path / "a.ome.tif"))
    assert found is None if mpp is None else found == pytest.approx(mpp)
