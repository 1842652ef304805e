"""The size of nuclei: disks of a known size, the real sections at right and wrong scales, and who is warned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from stpredict import _caches
from stpredict._spatialdata import BY_HAND, warn_of_mpp
from stpredict._spatialdata import _nuclei as picture
from stpredict._spatialdata._nuclei import RGB_OF_HED, blob_diameters_px, nuclear_diameter_px
from stpredict._spatialdata._scale import MAX_OFF_PICTURE
from stpredict.io import read_image

from .builders import circles, square_grid, systems

FIELD, PITCH = 384, 26


def stained(diameter, *, size=FIELD, strength=1.0, noise=0.01, seed=0):
    """A field of eosin with disks of haematoxylin of one diameter in px, antialiased, on a jittered grid."""
    rng = np.random.default_rng(seed)
    first, pitch = _grid(diameter)
    y, x = (at.ravel() for at in np.meshgrid(*[np.arange(first, size - first / 2, pitch)] * 2, indexing="ij"))
    outside = np.ones((size, size), dtype=bool)
    outside[tuple((at + rng.uniform(-2, 2, at.shape)).astype(int) for at in (y, x))] = False
    amount = np.clip(diameter / 2 + 0.5 - distance_transform_edt(outside), 0, 1)
    density = strength * (amount[..., None] * 0.9 * RGB_OF_HED[0] + 0.8 * RGB_OF_HED[1])
    density = np.maximum(density + rng.normal(0, noise, density.shape), 0)
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


def _grid(diameter):
    """The place of the first disk, and the pitch."""
    pitch = max(PITCH, 1.8 * diameter)
    return pitch / 2, pitch


@pytest.mark.parametrize("diameter", [6.0, 8.0, 11.0, 15.0, 20.0])
@pytest.mark.parametrize("strength", [0.6, 1.5])
def test_disks_have_their_diameter_whatever_the_strength_of_the_stain(diameter, strength):
    found = blob_diameters_px(stained(diameter, strength=strength))
    first, pitch = _grid(diameter)
    assert len(found) == pytest.approx(len(np.arange(first, FIELD - first / 2, pitch)) ** 2, rel=0.1)
    assert np.median(found) == pytest.approx(diameter, rel=0.1)


def test_a_turned_picture_has_the_same_nuclei():
    image = stained(9.0)
    wanted = nuclear_diameter_px([image])
    for turned in (np.rot90(image).copy(), image[:, ::-1].copy()):
        assert nuclear_diameter_px([turned]) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("value", [255, 128, 0])
def test_a_picture_of_nothing_tells_nothing(value):
    assert nuclear_diameter_px([np.full((200, 200, 3), value, np.uint8)]) is None
    assert nuclear_diameter_px([]) is None


def slide(pixels, **transformations):
    systems = {"global": Identity()} | transformations
    element = Image2DModel.parse(
        np.moveaxis(pixels, 2, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=systems
    )
    return SpatialData(images={"image": element})


def of_mpp(mpp, *, seed=0):
    """A slide whose nuclei have their usual size at `mpp`."""
    return slide(stained(picture.NUCLEUS_UM / mpp, size=900, seed=seed))


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.8])
def test_the_scale_is_found_from_right_and_from_wrong_ones(mpp):
    sdata = of_mpp(mpp)
    for factor in (1 / 1.6, 1.0, 1.6):
        assert picture.picture_mpp(sdata, "image", mpp * factor) == pytest.approx(mpp, rel=0.2)


def test_nuclei_that_are_not_resolved_do_not_say_that_pixels_are_smaller():
    assert picture.picture_mpp(of_mpp(1.4), "image", 1.4) is None
    assert picture.picture_mpp(of_mpp(1.4), "image", 0.5) > 0.5 * 1.6  # but that they are larger


class TestWarns:
    """Of a scale that was given by hand, where nothing else speaks."""

    @pytest.mark.parametrize("factor", [1 / 1.6, 1.6])
    def test_wrong_by_1_6(self, factor):
        with pytest.warns(
            UserWarning, match=r"hardly right for image 'image': its nuclei look as they do at about 0.(49|5)"
        ):
            warn_of_mpp(of_mpp(0.5), "image", None, 0.5 * factor)

    def test_right(self):
        warn_of_mpp(of_mpp(0.5), "image", None, 0.5)

    def test_a_scale_that_was_given_to_read_image(self, tmp_path):
        Image.fromarray(stained(picture.NUCLEUS_UM / 0.5, size=600)).save(tmp_path / "a.png")
        warn_of_mpp(read_image(tmp_path / "a.png", mpp=0.5), "image", None, None)
        with pytest.warns(UserWarning, match=r"mpp=0.9 um per pixel is hardly right"):
            warn_of_mpp(read_image(tmp_path / "a.png", mpp=0.9), "image", None, None)

    def test_a_micrometre_system_of_another_reader_is_believed(self):
        sdata = slide(stained(11.0), **{k: v for k, v in systems(2.0).items() if k != "global"})
        warn_of_mpp(sdata, "image", None, 2.0)
        sdata.attrs[BY_HAND] = True
        with pytest.warns(UserWarning, match="hardly right"):
            warn_of_mpp(sdata, "image", None, 2.0)

    def test_tiles_made_at_a_scale_do_not_confirm_it(self):
        from stpredict import pp

        sdata = of_mpp(0.5)
        with pytest.warns(UserWarning, match="hardly right"):
            pp.tile_grid(sdata, diameter_um=50.0, mpp=1.0)
        with pytest.warns(UserWarning, match="its nuclei"):
            warn_of_mpp(sdata, "image", "tiles", 1.0)

    def test_spots_confirm_a_scale_and_the_picture_is_not_read(self, monkeypatch):
        sdata = of_mpp(0.5)
        spots = circles(square_grid(4, 4, pitch=200.0), 50.0, transformations={"global": Identity()})
        sdata.shapes["spots"] = spots  # legacy Spatial Transcriptomics of 1 um per pixel
        monkeypatch.setattr("stpredict._spatialdata._scale.picture_mpp", None)
        warn_of_mpp(sdata, "image", None, 1.0)


def test_a_picture_is_read_once(monkeypatch):
    _caches.clear_all()
    sdata, calls = of_mpp(0.5), []
    monkeypatch.setattr(picture, "nuclear_diameter_px", lambda windows: calls.append(len(windows)) or 11.0)
    for _ in range(3):
        picture.picture_mpp(sdata, "image", 0.5)
    assert calls == [picture.N_WINDOWS]
    picture.picture_mpp(of_mpp(0.5, seed=1), "image", 0.5)  # another picture
    _caches.clear_all()
    picture.picture_mpp(sdata, "image", 0.5)
    assert len(calls) == 3
    _caches.clear_all()


REAL = {
    "C2": ("her2st/C2.jpg", 0.69), "C3": ("her2st/C3.jpg", 0.69), "C4": ("her2st/C4.jpg", 0.69),
    "C5": ("her2st/C5.jpg", 0.69), "colon": ("mouse_colon/d0_he.jpg", 0.971), "A1": ("her2st_A/A1.jpg", 3.18),
    "MOB1": ("mob/MOB1_he.jpg", 3.44), "MOB1 2.75": ("mob/MOB1_he_2.75um.jpg", 2.75),
    "MOB11": ("mob/MOB11_he_2.75um.jpg", 2.75),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "C4" else pytest.mark.slow) for name in REAL])
def test_real_sections_at_right_and_wrong_scales(data, name):
    path, mpp = REAL[name]
    sdata = read_image(data / path)
    seen = {factor: picture.picture_mpp(sdata, "image", mpp * factor) for factor in (1 / 1.6, 1.0, 1.6)}
    if mpp > 2:  # nuclei of two or three pixels
        assert set(seen.values()) == {None}
        return
    off = {factor: max(found / mpp / factor, mpp * factor / found) for factor, found in seen.items()}
    assert off[1.0] < MAX_OFF_PICTURE
    assert min(off[1 / 1.6], off[1.6]) > MAX_OFF_PICTURE
