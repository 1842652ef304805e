"""What a model knows: features of tissue, distances by cue, and that changed pictures lie outside."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import shapely
from scipy import ndimage

N = 60  # shapes


@pytest.fixture(scope="module")
def lib():
    from types import SimpleNamespace

    from stpredict import _appearance, _domain

    return SimpleNamespace(**vars(_domain) | vars(_appearance))


def tissue(seed: int, *, zoom: float = 1.0, size: int = 1400) -> np.ndarray:
    """(3, y, x) of dark blobs, as nuclei, on pink ground, at 1 um per pixel."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size), np.float32)
    n = int(size * size / (120 * zoom**2))
    image[rng.integers(0, size, n), rng.integers(0, size, n)] = rng.uniform(0.5, 1.5, n)
    blobs = ndimage.gaussian_filter(image, 2.2 * zoom)
    coarse = ndimage.gaussian_filter(rng.normal(size=(size, size)), 25 * zoom)
    density = 0.25 + 0.4 * blobs / blobs.std() * 0.5 + 0.1 * coarse / coarse.std()
    stain = np.array([0.75, 1.2, 0.6])[:, None, None]
    light = np.exp(-np.clip(density, 0.02, None) * stain) * 255
    return np.clip(light + rng.normal(0, 2, light.shape), 0, 255).astype(np.uint8)


def described(lib, pixels, *, factor: float = 1.0, seed: int = 0):
    """Features of shapes of a picture of 1 um per pixel, seen as if its mpp were `factor`, and their blocks."""
    scale = lib.DOMAIN_MPP / factor
    view = lib.ImageView(pixels, (scale, scale), lib.DOMAIN_MPP)
    xy = np.random.default_rng(seed).uniform(60, pixels.shape[1] - 60, (N, 2))
    section = lib.Section(
        name="s", image=lib.ImageView(pixels, (1.0, 1.0), 1.0), geometry=shapely.points(xy), radius=np.full(N, 20.0),
        ids=np.arange(N), area=np.full(N, 20.0**2 * np.pi),
    )  # fmt: skip
    return lib.describe(view, section, factor), lib.spatial_groups(section)


@pytest.fixture(scope="module")
def domain(lib):
    pictures = [tissue(seed) for seed in range(3)]
    seen = [[described(lib, each, factor=f)[0] for f in lib.FACTORS] for each in pictures]
    return lib.Domain.fit(seen, [described(lib, each)[1] for each in pictures])


def test_a_block_sees_itself_and_its_surroundings_alone(lib):
    pixels = tissue(5)
    whole, _ = described(lib, pixels)
    part = lib.ImageView(pixels, (2.0, 2.0), 2.0).read(lib.Window(128 - 24, 256 - 24, 128 + 48, 128 + 48))
    alone = lib.block_features(part)[0, 0]
    xy = np.array([[2 * (256 + 30.0), 2 * (128 + 30.0)]])
    one = lib.Section(
        name="s", image=lib.ImageView(pixels, (1.0, 1.0), 1.0), geometry=shapely.points(xy), radius=np.ones(1),
        ids=np.arange(1), area=np.ones(1),
    )  # fmt: skip
    np.testing.assert_array_equal(lib.describe(lib.ImageView(pixels, (2.0, 2.0), 2.0), one)[0], alone)
    assert np.isfinite(whole).all() and whole.shape == (N, lib.N_FEATURES)


def test_shapes_that_are_empty_have_no_features(lib):
    pixels = tissue(5)
    geometry = np.array([shapely.Point(), shapely.Point(9, 9)])
    section = lib.Section(
        name="s", image=lib.ImageView(pixels, (1.0, 1.0), 1.0), geometry=geometry,
        radius=np.ones(2), ids=np.arange(2), area=np.ones(2),
    )  # fmt: skip
    found = lib.describe(lib.ImageView(pixels, (2.0, 2.0), 2.0), section)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_the_same_kind_of_tissue_lies_inside(lib, domain):
    share, said = lib.outside(domain, described(lib, tissue(9))[0])
    assert said is None and (share > lib.OUT).mean() < 0.1
    assert 20 < np.median(share) < 80  # as spread as those that were left out


@pytest.mark.parametrize(
    ("change", "cue"),
    [
        (lambda p: p[::-1], "colour"),
        (lambda p: p[[1, 0, 2]], "colour"),
        (lambda p: np.stack([ndimage.gaussian_filter(c.astype(float), 4) for c in p]).astype(np.uint8), "form"),
        (lambda p: np.random.default_rng(0).integers(0, 255, p.shape).astype(np.uint8), "form"),
    ],
    ids=["red and blue", "red and green", "blur", "noise"],
)
def test_a_changed_picture_lies_outside_and_the_cue_is_named(lib, domain, change, cue):
    share, said = lib.outside(domain, described(lib, np.ascontiguousarray(change(tissue(9))))[0])
    assert (share > lib.OUT).mean() > 0.9
    assert said.startswith("100% of the shapes do not look like") and cue in said


@pytest.mark.parametrize("factor", [1.6, 1 / 1.6])
def test_a_wrong_scale_is_told_and_by_how_much(lib, domain, factor):
    features = described(lib, tissue(9), factor=factor)[0]
    share, said = lib.outside(domain, features)
    assert (share > lib.OUT).mean() > 0.8 and "scale (mpp)" in said
    assert domain.factor(features) == pytest.approx(factor, rel=0.2)
    assert domain.factor(described(lib, tissue(9))[0]) == pytest.approx(1.0, rel=0.1)


def test_distances_are_those_of_their_definition(lib, domain):
    features = described(lib, tissue(9))[0]
    found = domain.distances(features)
    unit = (features.astype(float) - domain.mean) / domain.scale
    for cue, part in (("colour", lib.COLOUR), ("form", lib.FORM), ("joint", slice(None))):
        inverse = np.linalg.inv(domain.correlation[part, part])
        wanted = [np.sqrt(row[part] @ inverse @ row[part] / len(inverse)) for row in unit]
        np.testing.assert_allclose(found[cue], wanted)
    np.testing.assert_allclose(found["scale"], np.abs(unit @ domain.zoom))
    ratios = [found[cue] / domain.reference[cue][99] for cue in ("colour", "form", "scale", "joint")]
    np.testing.assert_allclose(found["all"], np.linalg.norm(ratios, ord=4, axis=0))


def test_a_percentile_is_a_share_of_what_was_left_out(lib, domain):
    rising = dataclasses.replace(domain, reference={"all": np.linspace(0.5, 2.5, 101)})
    np.testing.assert_allclose(rising.percentile(np.linspace(0.5, 2.5, 201)), np.arange(201) / 2)
    low, high = domain.percentile(np.array([0.0, 1e9]))
    assert (low, high) == (0.0, 100.0) and np.isnan(domain.percentile(np.array([np.nan]))).all()


def test_one_section_leaves_out_its_blocks_and_a_small_one_shows_nothing(lib):
    picture = tissue(1, size=2200)
    runs = [[described(lib, picture, factor=f, seed=s)[0] for f in lib.FACTORS] for s in (0, 1, 2)]
    both = [np.concatenate(pair) for pair in zip(*runs, strict=True)]
    groups = np.concatenate([described(lib, picture, seed=s)[1] for s in (0, 1, 2)])
    assert lib.Domain.fit([both], [groups]).source == "spatial blocks of the section"
    assert lib.Domain.fit([runs[0]], [groups[:N]]) is None  # too few blocks


def test_a_record_comes_back_and_damage_is_named(lib, domain):
    record = domain.record()
    again = lib.Domain.from_record(record)
    features = described(lib, tissue(9))[0]
    np.testing.assert_allclose(again.distances(features)["all"], domain.distances(features)["all"], rtol=1e-3)
    assert lib.Domain.from_record({}) is None
    damage = {
        "mean": record["mean"][:-1], "scale": [0.0] * lib.N_FEATURES, "zoom": ["a"] * lib.N_FEATURES,
        "correlation": [1.0] * lib.N_FEATURES**2, "reference": {}, "source": 1, "mpp": 1.0,
    }  # fmt: skip
    for name, value in damage.items():
        with pytest.raises(ValueError, match="domain"):
            lib.Domain.from_record(record | {name: value})
    with pytest.raises(ValueError, match=r"domain.reference.all must be a list of 101"):
        lib.Domain.from_record(record | {"reference": record["reference"] | {"all": [float("nan")] * 101}})


def test_a_card_keeps_it_and_refuses_a_damaged_one(domain, build, tmp_path):
    from stpredict._card import check_card
    from stpredict.models._base import new_card

    model = build("Ridge")
    card = new_card(model, domain=domain.record(), about={"organ": ["breast"]})
    check_card(card)
    with pytest.raises(ValueError, match="domain.mean"):
        check_card(dataclasses.replace(card, domain=domain.record() | {"mean": []}))
    with pytest.raises(ValueError, match="about.'organ' must be a list of texts"):
        check_card(dataclasses.replace(card, about={"organ": "breast"}))


@pytest.mark.parametrize(("zoom", "sigmas"), [(1, "FINE"), (2, "WIDE")])
def test_bands_are_differences_of_gaussian_filters(lib, zoom, sigmas):
    sigmas, side, margin = getattr(lib, sigmas), lib.BLOCK_PX // zoom, lib.MARGIN_PX // zoom
    grey = np.random.default_rng(0).uniform(0, 2, (side + 2 * margin, 3 * side + 2 * margin)).astype(np.float32)
    inner = slice(margin, -margin)
    blurred = [ndimage.gaussian_filter(grey.astype(np.float64), s / zoom, truncate=3.0)[inner, inner] for s in sigmas]
    expected = np.stack([fine - coarse for fine, coarse in pairwise(blurred)])
    expected = expected.reshape(-1, side, 3, side).swapaxes(1, 2).reshape(len(sigmas) - 1, 3, -1)
    found = lib._bands(grey, sigmas, zoom=zoom)  # the pixels of a block by strips of columns
    found = found.reshape(len(sigmas) - 1, 3, -1, side, lib.STRIP_PX).swapaxes(2, 3).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_squares_read_together_or_one_by_one_are_the_same(lib, monkeypatch):
    pixels = tissue(3, size=1200)
    together, _ = described(lib, pixels)
    for name, value in (("SQUARE_BLOCKS", 1), ("READ_SQUARES", 2)):
        monkeypatch.setattr(f"stpredict._appearance.{name}", value)
    np.testing.assert_allclose(described(lib, pixels)[0], together, atol=2e-5)


def test_empty_shapes_have_no_features(lib):
    view = lib.ImageView(tissue(3), (2.0, 2.0), 2.0)
    section = lib.Section(
        name="s", image=view, geometry=np.array([shapely.Point(), shapely.Polygon()]), radius=np.full(2, np.nan),
        ids=np.arange(2), area=np.zeros(2),
    )  # fmt: skip
    assert np.isnan(lib.describe(view, section)).all()
