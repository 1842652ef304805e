"""Places that several sections share: one image is known as one, and what is held out of it is held out of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely


@pytest.fixture
def scales():
    """A function of sides in pixels that makes sections of square bins (and of spots, side 0) on one image."""
    from stpredict._section import ImageView, Section

    def make(*sides, seed=0, size=240, shift=0.0):
        pixels = np.random.default_rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8)
        view = ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=1.0)
        return [_section(Section, view, side, size, shift) for side in sides]

    return make


def _section(kind, view, side, size, shift):
    step = side or 24
    low = np.arange(0, size - step + 1, step) + shift
    x, y = (grid.ravel() for grid in np.meshgrid(low, low))
    if side:
        geometry, radius = shapely.box(x, y, x + side, y + side), np.full(len(x), np.nan)
    else:
        geometry, radius = shapely.points(x + 12, y + 12), np.full(len(x), 9.0)
    area = np.where(np.isnan(radius), float(side) ** 2, np.pi * 81.0)
    expression = np.zeros((len(x), 1), np.float32)
    return kind(
        name=f"of {side}", image=view, geometry=geometry, radius=radius, ids=np.arange(len(x)), area=area,
        expression=expression, genes=("a",),
    )  # fmt: skip


def _polygons(section):
    circles = np.isfinite(section.radius)
    whole = section.geometry.copy()
    whole[circles] = shapely.buffer(whole[circles], section.radius[circles], quad_segs=32)
    return whole


def shared_area(held, fitted):
    """The area that validation shapes of any section share with training shapes of any: the oracle of a leak."""
    tree = shapely.STRtree(np.concatenate([_polygons(s) for s in fitted]))
    total = 0.0
    for section in held:
        mine, its = tree.query(whole := _polygons(section), predicate="intersects")
        total += shapely.area(shapely.intersection(whole[mine], tree.geometries[its])).sum()
    return total


def test_no_place_that_is_held_out_is_trained_on_at_another_scale(scales):
    from stpredict._training import hold_out_places

    sections = scales(16, 8, 2, 0)
    for seed in range(4):
        fitted, held = hold_out_places(sections, share=0.2, seed=seed)
        assert [s.name for s in fitted] == [s.name for s in held] == [s.name for s in sections]
        assert shared_area(held, fitted) == 0
        for before, kept, out in zip(sections, fitted, held, strict=True):
            n_across = kept.dropped.get("across the border of a held-out place", 0)
            assert kept.n_shapes + out.n_shapes + n_across == before.n_shapes
            assert 0.1 < out.n_shapes / before.n_shapes < 0.4


def test_the_oracle_sees_the_leak_of_blocks_that_every_section_cuts_for_itself(scales):
    from stpredict._training import hold_out_places

    sections = scales(16, 8, 2, 0)
    alone = [hold_out_places([section], share=0.2, seed=0) for section in sections]
    fitted, held = ([part for parts in of for part in parts] for of in zip(*alone, strict=True))
    assert shared_area(held, fitted) > 1000


def test_places_are_common_to_two_objects_of_one_image(scales):
    from stpredict._training import hold_out_places

    one, other = scales(16)[0], scales(8)[0]  # pixels of their own, the same values
    assert one.image.pixels is not other.image.pixels
    fitted, held = hold_out_places([one, other], share=0.2, seed=0)
    assert shared_area(held, fitted) == 0
    elsewhere = scales(8, seed=1)[0]
    fitted, held = hold_out_places([one, elsewhere], share=0.2, seed=0)
    for k, section in enumerate((one, elsewhere)):
        assert [part[k].ids.tolist() for part in (fitted, held)] == [
            part[0].ids.tolist() for part in hold_out_places([section], share=0.2, seed=0)
        ]


def test_two_views_of_one_image_at_slightly_other_scales_are_one_tissue(scales):
    from stpredict._places import tissues
    from stpredict._section import ImageView
    from stpredict._training import hold_out_places

    one, other = scales(16, 8)
    scale = 1.001  # as two arrays of spots may say
    view = ImageView(pixels=one.image.pixels, scale=(scale, scale), mpp=1.0)
    geometry = shapely.transform(other.geometry, lambda xy: xy / scale)
    other = replace(other, image=view, geometry=geometry)
    assert tissues([one, other]) == [[0, 1]]
    fitted, held = hold_out_places([one, other], share=0.2, seed=0)
    back = [
        replace(part[1], geometry=shapely.transform(part[1].geometry, lambda xy: xy * scale)) for part in (fitted, held)
    ]
    assert shared_area([held[0], back[1]], [fitted[0], back[0]]) < 1e-6


def test_the_order_of_sections_does_not_decide_what_is_held_out(scales):
    from stpredict._training import hold_out_places

    sections = scales(16, 8, 0)
    there, back = (hold_out_places(s, share=0.2, seed=3)[1] for s in (sections, sections[::-1]))
    assert [s.ids.tolist() for s in there] == [s.ids.tolist() for s in back[::-1]]


def test_a_region_without_a_held_out_place_is_trained_on_whole(scales):
    from stpredict._section import take
    from stpredict._training import hold_out_places

    whole = scales(8)[0]
    x = shapely.get_x(shapely.centroid(whole.geometry))
    left, right = take(whole, x < 120), take(whole, x > 120)
    seen = []
    for seed in range(8):
        fitted, held = hold_out_places([left, right], share=0.07, seed=seed)
        assert len(fitted) == 2 and 1 <= len(held) <= 2
        assert shared_area(held, fitted) == 0
        seen.append(len(held))
    assert 1 in seen


def test_windows_of_dense_models_supervise_no_held_out_place(scales):
    from stpredict._training import hold_out_places
    from stpredict.models._windows import WindowSamples

    fitted, held = hold_out_places(scales(16, 8, 2), share=0.2, seed=0)
    windows = WindowSamples(fitted, window_px=96, stride=4, reduction="mean", train=True, seed=0)
    rows = np.unique(np.concatenate([windows[i][3] for i in range(40)]), axis=0)
    assert set(rows[:, 0]) == {0, 1, 2}
    supervised = [replace(s, geometry=s.geometry[k], radius=s.radius[k], ids=k, area=s.area[k], expression=None)
                  for i, s in enumerate(fitted) if len(k := rows[rows[:, 0] == i, 1])]  # fmt: skip
    assert shared_area(held, supervised) == 0


def test_blocks_of_one_section_are_quantiles_of_its_shapes(scales):
    from stpredict._places import blocks, common_blocks

    section = scales(16)[0]
    assert np.array_equal(common_blocks([section])[0], blocks(section))
    assert np.ptp(np.bincount(blocks(section))) <= 16
    assert set(blocks(section)) == set(range(16))


def test_an_inner_validation_leaves_out_images_or_common_blocks(scales):
    from stpredict._places import common_blocks, inner_groups

    one, other = scales(16, 8)
    elsewhere = scales(8, seed=1)[0]
    wanted = [0] * one.n_shapes + [1] * elsewhere.n_shapes + [0] * other.n_shapes
    assert inner_groups([one, elsewhere, other]).tolist() == wanted
    assert np.array_equal(inner_groups([one, other]), np.concatenate(common_blocks([one, other])))


def test_shapes_that_lie_on_others_are_found(scales):
    from stpredict._places import lies_on
    from stpredict._section import take

    coarse, fine = scales(16, 8)
    x = shapely.get_x(shapely.centroid(fine.geometry))
    left, right = take(fine, x < 100), take(fine, x > 200)
    assert lies_on(left, coarse).all() and lies_on(coarse, left).any()
    apart = take(coarse, shapely.get_x(shapely.centroid(coarse.geometry)) < 150)
    assert not lies_on(right, apart).any() and not lies_on(apart, right).any()


def test_what_cannot_be_held_out_is_said(scales):
    from stpredict._section import take
    from stpredict._training import hold_out_places

    sections = scales(16, 8)
    with pytest.raises(ValueError, match=r"val=1.5 must lie in"):
        hold_out_places(sections, share=1.5, seed=0)
    assert hold_out_places(sections, share=0.0, seed=0) == (sections, [])
    with pytest.raises(ValueError, match=r"section 'of 16' has 1 usable shapes, on one image with 'of 8', too few"):
        for seed in range(40):  # until the place of that shape is held out
            hold_out_places([take(sections[0], np.array([0])), sections[1]], share=0.3, seed=seed)
