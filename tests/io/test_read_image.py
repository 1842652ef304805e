"""read_image against the arrays that were written, in every format; scale, laziness, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import struct
import sys
import types
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
from PIL import Image
from spatialdata import read_zarr
from spatialdata.transformations import Identity, get_transformation

from stpredict._spatialdata import BY_HAND
from stpredict.io import _jpg_png, _rgb, _tiff, read_image

RGB = np.random.default_rng(0).integers(0, 256, (410, 333, 3), dtype=np.uint8)


def level(sdata, k=0) -> np.ndarray:
    """(y, x, 3)"""
    return np.moveaxis(sdata.images["image"][f"scale{k}"]["image"].values, 0, 2)


def mpp_of(sdata) -> float | None:
    systems = get_transformation(sdata.images["image"], get_all=True)
    if set(systems) == {"global"}:
        return None
    assert set(systems) == {"global", "micrometers"}
    matrix = systems["micrometers"].to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(matrix, np.diag([matrix[0, 0], matrix[0, 0], 1]))
    return float(matrix[0, 0])


def halved(pixels):
    """Means of 2 x 2 pixels, halves rounded up, an odd last row or column left out."""
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    four = pixels[:h, :w].astype(float)
    return np.floor((four[::2, ::2] + four[1::2, ::2] + four[::2, 1::2] + four[1::2, 1::2]) / 4 + 0.5).astype(np.uint8)


def _png(path):
    Image.fromarray(RGB).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def _tiff_writer(suffix=".tif", **options):
    def write(path):
        planar = options.get("planarconfig") == "separate"
        tifffile.imwrite(
            path.with_suffix(suffix), np.moveaxis(RGB, 2, 0) if planar else RGB, photometric="rgb", **options
        )
        return path.with_suffix(suffix)

    return write


def _pillow_tiff(path):
    Image.fromarray(RGB).save(path.with_suffix(".tiff"), compression="tiff_lzw")
    return path.with_suffix(".tiff")


def _ome_channels(path):
    names = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    tifffile.imwrite(path.with_suffix(".ome.tif"), np.moveaxis(RGB, 2, 0), photometric="minisblack", metadata=names)
    return path.with_suffix(".ome.tif")


LOSSLESS = {
    "png": _png,
    "tiff in one strip, uncompressed": _tiff_writer(),
    "tiff in one strip, deflate": _tiff_writer(compression="zlib"),
    "tiff in strips, lzw": _pillow_tiff,
    "tiff in tiles": _tiff_writer(tile=(64, 48)),
    "tiff in planes": _tiff_writer(tile=(64, 48), planarconfig="separate"),
    "tiff in large tiles": _tiff_writer(tile=(256, 512), compression="zlib"),
    "big tiff": _tiff_writer(".btf", tile=(64, 64), bigtiff=True),
    "ome-tiff": _tiff_writer(".ome.tif", tile=(64, 64)),
    "ome-tiff, channels named by colour": _ome_channels,
}


@pytest.mark.parametrize("write", LOSSLESS.values(), ids=LOSSLESS)
def test_pixels_are_those_of_the_file(write, tmp_path):
    sdata = read_image(write(tmp_path / "slide"), name="mine")
    np.testing.assert_array_equal(level(sdata), RGB)
    image = sdata.images["image"]["scale0"]["image"]
    assert (image.dims, image.dtype, image.c.values.tolist()) == (("c", "y", "x"), np.uint8, ["r", "g", "b"])
    assert sdata.attrs["name"] == "mine"


@pytest.mark.parametrize("write", LOSSLESS.values(), ids=LOSSLESS)
def test_a_window_is_the_same_as_in_the_whole(write, tmp_path, monkeypatch):
    monkeypatch.setattr("stpredict.io._lazy.CHUNK_PX", 100)
    pixels = read_image(write(tmp_path / "slide")).images["image"]["scale0"]["image"].data
    np.testing.assert_array_equal(pixels[:, 37:301, 90:262].compute(), np.moveaxis(RGB[37:301, 90:262], 2, 0))


def test_strips_too_large_for_windows_are_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_tiff, "MAX_CHUNK_PX", 1000)
    decoded = []
    asarray = tifffile.TiffPageSeries.asarray
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda s, *a, **k: decoded.append(s) or asarray(s, *a, **k))
    sdata = read_image(LOSSLESS["tiff in one strip, deflate"](tmp_path / "slide"))
    assert decoded == []
    np.testing.assert_array_equal(level(sdata), RGB)
    np.testing.assert_array_equal(level(sdata), RGB)
    assert len(decoded) == 1


def test_jpg_is_what_pillow_decodes(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.JPG", quality=95)
    with Image.open(tmp_path / "a.JPG") as image:
        np.testing.assert_array_equal(level(read_image(tmp_path / "a.JPG")), np.asarray(image))


def test_jpeg_tiles_in_tiff_become_rgb(tmp_path):
    flat = np.full((128, 128, 3), (200, 120, 180), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", flat, photometric="rgb", compression="jpeg", tile=(64, 64))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.YCBCR  # as JPEG stores it
    np.testing.assert_allclose(level(read_image(tmp_path / "a.tif")), flat, atol=3)


class TestPyramid:
    """Levels of the file as they are, coarser ones by halving."""

    def test_halving_to_one_chunk(self, tmp_path):
        wide = np.random.default_rng(1).integers(0, 256, (9, 4101, 3), dtype=np.uint8)
        Image.fromarray(wide).save(tmp_path / "wide.png")
        sdata = read_image(tmp_path / "wide.png")
        assert list(sdata.images["image"]) == ["scale0", "scale1", "scale2", "scale3"]
        assert level(sdata, 3).shape == (1, 512, 3)
        expected = wide
        for k in range(3):
            np.testing.assert_array_equal(level(sdata, k), expected)
            expected = halved(expected)

    @pytest.mark.parametrize("width", [1025, 2049, 3075])
    def test_a_last_chunk_of_one_column(self, tmp_path, width):
        wide = np.random.default_rng(1).integers(0, 256, (30, width, 3), dtype=np.uint8)
        Image.fromarray(wide).save(tmp_path / "wide.png")
        np.testing.assert_array_equal(level(read_image(tmp_path / "wide.png"), 1), halved(wide))

    def test_chunks(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((1500, 2100, 3), np.uint8), photometric="rgb", tile=(240, 240))
        for scale in read_image(tmp_path / "a.tif").images["image"].values():
            chunks = scale["image"].data.chunks
            assert chunks[0] == (3,)
            assert all(set(sizes[:-1]) <= {1024} and sizes[-1] <= 1024 for sizes in chunks[1:])

    def test_levels_of_the_file_are_used(self, tmp_path):
        rng = np.random.default_rng(2)
        stored = [rng.integers(0, 256, (3000 // f, 2000 // f, 3), dtype=np.uint8) for f in (1, 4)]
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
            file.write(stored[0], subifds=1, tile=(256, 256), photometric="rgb", metadata={"axes": "YXS"})
            file.write(stored[1], subfiletype=1, tile=(256, 256), photometric="rgb")
        sdata = read_image(tmp_path / "a.ome.tif", mpp=0.5)
        assert list(sdata.images["image"]) == ["scale0", "scale1"]
        np.testing.assert_array_equal(level(sdata, 0), stored[0])
        np.testing.assert_array_equal(level(sdata, 1), stored[1])
        to_um = get_transformation(sdata.images["image"]["scale1"]["image"], "micrometers")
        assert np.allclose(to_um.to_affine_matrix(("x", "y"), ("x", "y")), np.diag([2.0, 2.0, 1.0]))

    def test_the_largest_image_of_the_file(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(RGB[:60, :50].copy(), photometric="rgb", metadata=None)
            file.write(RGB, photometric="rgb", metadata=None)
        np.testing.assert_array_equal(level(read_image(tmp_path / "a.tif")), RGB)


class TestLazy:
    """A pixel is read when it is asked for, and the tile it lies in, not the slide."""

    def test_a_broken_tile_hurts_only_who_reads_it(self, tmp_path):
        pixels = np.random.default_rng(3).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(512, 512), compression="zlib")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            at = file.pages[0].dataoffsets[-1]
        with open(tmp_path / "a.tif", "r+b") as file:
            file.seek(at)
            file.write(b"\x00" * 100)
        array = read_image(tmp_path / "a.tif").images["image"]["scale0"]["image"].data
        np.testing.assert_array_equal(array[:, :900, :900].compute(), np.moveaxis(pixels[:900, :900], 2, 0))
        with pytest.raises(Exception, match="(?i)zlib|deflate"):
            array[:, -10:, -10:].compute()

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_header_now_pixels_later(self, tmp_path, monkeypatch, suffix):
        opened = []
        decode = _jpg_png._decode
        monkeypatch.setattr(_jpg_png, "_decode", _named(lambda path: opened.append(path) or decode(path)))
        Image.fromarray(RGB).save(tmp_path / f"a{suffix}")
        array = read_image(tmp_path / f"a{suffix}").images["image"]["scale0"]["image"].data
        assert opened == []
        array[:, :9, :9].compute()
        array.compute()
        assert len(opened) == 1

    @pytest.mark.parametrize("write", [_png, LOSSLESS["tiff in tiles"]])
    def test_copies_and_pickles(self, tmp_path, write):
        array = read_image(write(tmp_path / "a")).images["image"]["scale0"]["image"].data
        array[:, :9, :9].compute()
        for other in (copy.deepcopy(array), pickle.loads(pickle.dumps(array))):
            np.testing.assert_array_equal(other.compute(), np.moveaxis(RGB, 2, 0))

    def test_name_of_the_array_follows_the_file(self, tmp_path):
        def name():
            return read_image(tmp_path / "a.png").images["image"]["scale0"]["image"].data.name

        _png(tmp_path / "a")
        first = name()
        assert name() == first
        Image.fromarray(RGB[::-1]).save(tmp_path / "a.png")
        assert name() != first

    def test_result_may_be_written_into(self, tmp_path):
        array = read_image(_png(tmp_path / "a")).images["image"]["scale0"]["image"].data
        part = array[:, :20, :20].compute()
        part[:] = 0
        np.testing.assert_array_equal(array[:, :20, :20].compute(), np.moveaxis(RGB[:20, :20], 2, 0))


def _named(function):
    function.__name__ = "_decode"
    return function


class TestScale:
    """Where micrometres per pixel come from."""

    def ome(self, path, **metadata):
        tifffile.imwrite(path, RGB, photometric="rgb", metadata={"axes": "YXS", **metadata})
        return path

    @pytest.mark.parametrize(
        ("size", "unit", "mpp"),
        [(0.25, "µm", 0.25), (0.25, None, 0.25), (250.0, "nm", 0.25), (0.0005, "mm", 0.5)],
    )
    def test_ome(self, tmp_path, size, unit, mpp):
        units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
        path = self.ome(tmp_path / "a.ome.tif", PhysicalSizeX=size, PhysicalSizeY=size, **units)
        assert mpp_of(read_image(path)) == pytest.approx(mpp)

    def test_ome_in_no_length(self, tmp_path):
        path = self.ome(
            tmp_path / "a.ome.tif",
            **{"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"},
        )
        assert mpp_of(read_image(path)) is None

    @pytest.mark.parametrize(
        ("resolution", "unit", "mpp"),
        [
            (40_000, "CENTIMETER", 0.25),
            (50_800, "INCH", 0.5),
            (72, "INCH", None),
            (1200, "INCH", None),
            (1, "NONE", None),
            (118, "CENTIMETER", None),
        ],
    )
    def test_resolution_tags_only_where_they_are_a_microscopes(self, tmp_path, resolution, unit, mpp):
        tifffile.imwrite(
            tmp_path / "a.tif", RGB, photometric="rgb", resolution=(resolution, resolution), resolutionunit=unit
        )
        found = mpp_of(read_image(tmp_path / "a.tif"))
        assert found == (None if mpp is None else pytest.approx(mpp))

    def test_it_is_said(self, tmp_path, caplog):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
        with caplog.at_level("INFO", "stpredict"):
            read_image(tmp_path / "a.tif")
        assert "352.778 um per pixel, which is no slide scanner's" in caplog.text

    def test_imagej(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", RGB, imagej=True, resolution=(2.0, 2.0), metadata={"unit": "micron"})
        assert mpp_of(read_image(tmp_path / "a.tif")) == pytest.approx(0.5)

    def test_argument_comes_first(self, tmp_path):
        path = self.ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.25, PhysicalSizeY=0.25)
        with pytest.warns(UserWarning, match=r"mpp=0.5 was given for a.ome.tif, but the file states 0.25 um per pixel"):
            assert mpp_of(read_image(path, mpp=0.5)) == pytest.approx(0.5)

    def test_a_scale_that_only_the_caller_knows_is_marked(self, tmp_path):
        path = self.ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.25, PhysicalSizeY=0.25)
        assert BY_HAND in read_image(_png(tmp_path / "a"), mpp=0.5).attrs
        for known in (read_image(path), read_image(path, mpp=0.28), read_image(_png(tmp_path / "a"))):
            assert BY_HAND not in known.attrs

    def test_pixels_that_are_not_square(self, tmp_path):
        path = self.ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.25, PhysicalSizeY=0.5)
        with pytest.raises(ValueError, match="not square, 0.25 x 0.5 um"):
            read_image(path)
        assert mpp_of(read_image(path, mpp=0.25)) == pytest.approx(0.25)

    def test_none_is_no_error(self, tmp_path):
        sdata = read_image(_png(tmp_path / "a"))
        assert mpp_of(sdata) is None
        assert get_transformation(sdata.images["image"], "global") == Identity()

    @pytest.mark.parametrize("mpp", [0.0, -1.0, np.nan, np.inf])
    def test_impossible(self, tmp_path, mpp):
        with pytest.raises(ValueError, match="mpp=.* must"):
            read_image(_png(tmp_path / "a"), mpp=mpp)


def test_survives_a_store(tmp_path):
    sdata = read_image(_png(tmp_path / "a"), mpp=0.5)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    for k in range(2):
        np.testing.assert_array_equal(level(back, k), level(sdata, k))
    assert mpp_of(back) == 0.5
    assert back.images["image"]["scale0"]["image"].c.values.tolist() == ["r", "g", "b"]


@pytest.mark.parametrize("format_", ["png", "tif"])
def test_transparency_is_laid_over_white(tmp_path, format_):
    alpha = np.random.default_rng(4).choice([0, 100, 255], RGB.shape[:2]).astype(np.uint8)
    rgba = np.dstack([RGB, alpha])
    if format_ == "png":
        Image.fromarray(rgba).save(tmp_path / "a.png")
    else:
        tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    share = alpha[..., None] / 255
    expected = RGB * share + 255 * (1 - share)
    found = level(read_image(tmp_path / f"a.{format_}"))
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(found[alpha == 255], RGB[alpha == 255])


def _png_16_bit(path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + bytes(6 * 8) for _ in range(8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


NOT_RGB = {
    "grey.png": (lambda p: Image.fromarray(RGB[..., 0]).save(p), "mode is 'L'"),
    "grey.tif": (lambda p: tifffile.imwrite(p, RGB[..., 0]), "axes YX.*MINISBLACK"),
    "palette.png": (lambda p: Image.fromarray(RGB).quantize(8).save(p), "mode is 'P'"),
    "cmyk.jpg": (lambda p: Image.fromarray(RGB).convert("CMYK").save(p), "mode is 'CMYK'"),
    "deep.png": (_png_16_bit, "16 bits per channel"),
    "deep.tif": (lambda p: tifffile.imwrite(p, RGB.astype(np.uint16), photometric="rgb"), "pixels are uint16.*257"),
    "if.tif": (lambda p: tifffile.imwrite(p, np.moveaxis(RGB, 2, 0), photometric="minisblack"), "separate channels"),
    "stack.tif": (
        lambda p: tifffile.imwrite(p, np.stack([RGB, RGB]), photometric="rgb", metadata={"axes": "ZYXS"}),
        "axes ZYXS",
    ),
}


@pytest.mark.parametrize("name", NOT_RGB)
def test_refuses_what_is_not_rgb(tmp_path, name):
    write, found = NOT_RGB[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"not an 8-bit RGB image: .*{found}"):
        read_image(tmp_path / name)


def test_refuses_an_unknown_format(tmp_path):
    (tmp_path / "a.bmp").touch()
    with pytest.raises(ValueError, match="unknown format: 'a.bmp'.*convert others to OME-TIFF"):
        read_image(tmp_path / "a.bmp")


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image at .*a.png"):
        read_image(tmp_path / "a.png")


def test_refuses_a_wrong_suffix(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="is not a .jpg file"):
        read_image(tmp_path / "a.jpg")


def test_pillows_limit_is_neither_met_nor_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    path = _png(tmp_path / "a")
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(path)
    np.testing.assert_array_equal(level(read_image(path)), RGB)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("form", ["png", "tiff in one strip, deflate"])
def test_our_limit_for_files_without_tiles(tmp_path, monkeypatch, form):
    monkeypatch.setattr(_rgb, "MAX_DECODED_PX", 1000)
    monkeypatch.setattr(_tiff, "MAX_CHUNK_PX", 1000)
    with pytest.raises(ValueError, match="333 x 410 px and no tiles.*limit for that is 1,000 px.*tiled"):
        read_image(LOSSLESS[form](tmp_path / "a"))


class TestVendorSlide:
    """The path through wsidata, with a stand-in for it: it needs native libraries that are no test dependency."""

    def test_extra_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wsidata", None)
        (tmp_path / "a.svs").touch()
        with pytest.raises(ImportError, match=r"pip install 'stpredict\[wsi\]'"):
            read_image(tmp_path / "a.svs")

    @pytest.mark.parametrize(
        ("stated", "argument", "mpp"), [(0.25, None, 0.25), (None, None, None), (0.25, 0.28, 0.28)]
    )
    def test_levels_and_scale(self, tmp_path, monkeypatch, stated, argument, mpp):
        levels = [RGB, RGB[:408:4, :332:4].copy()]

        def get_region(x, y, width, height, level):
            y, x = (round(a * n / full) for a, n, full in zip((y, x), levels[level].shape, RGB.shape, strict=False))
            return levels[level][y : y + height, x : x + width]

        properties = types.SimpleNamespace(level_shape=[part.shape[:2] for part in levels], mpp=stated)
        reader = types.SimpleNamespace(properties=properties, get_region=get_region)
        fake = types.ModuleType("wsidata")
        fake.open_wsi = lambda path, store: types.SimpleNamespace(reader=reader)
        monkeypatch.setitem(sys.modules, "wsidata", fake)
        monkeypatch.setattr("stpredict.io._lazy.CHUNK_PX", 64)
        (tmp_path / "a.svs").touch()
        sdata = read_image(tmp_path / "a.svs", mpp=argument)
        np.testing.assert_array_equal(level(sdata, 0), levels[0])
        np.testing.assert_array_equal(level(sdata, 1), levels[1])
        assert mpp_of(sdata) == mpp
