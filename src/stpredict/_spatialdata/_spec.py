"""Which elements of an object make a section, and its image at a working resolution."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stpredict._domain import DOMAIN_MPP
from stpredict._section import ImageView, image_digest
from stpredict._spatialdata._elements import image_levels, resolve_image, resolve_shapes, warn_of_missing_chunks
from stpredict._spatialdata._scale import image_mpp, warn_of_mpp
from stpredict._spatialdata._target import Target
from stpredict._spatialdata._transformations import check_resolution, level_scale

if TYPE_CHECKING:
    from spatialdata import SpatialData

MAX_FINER = 256.0  # an image that is finer than the model by more is of no microscope: its mpp is wrong


@dataclass(frozen=True, kw_only=True)
class SectionSpec:
    """Which elements of an object make a section, and which of its spots are used; None: found where unambiguous.

    Parameters
    ----------
    image_key, shapes_key
        Names of the H&E image and of the shapes.
    table_name, layer
        The table that annotates the shapes, and its layer of raw counts (None: X).
    target
        "log1p_cp10k", or "as_is" for values that are no counts; `min_counts` then does not apply.
    mpp
        Micrometres per pixel of the full-resolution image; None: found as `image_mpp` says.
    tissue_key
        Shapes or labels that outline tissue; None: the whole image.
    min_counts
        Total counts that a spot needs to be used; None: by its area, see `metrics.default_min_counts`.
    """

    image_key: str | None = None
    shapes_key: str | None = None
    table_name: str = "table"
    layer: str | None = None
    target: Target = "log1p_cp10k"
    mpp: float | None = None
    tissue_key: str | None = None
    min_counts: float | None = None

    @property
    def image(self) -> str:
        """`image_key` of a spec that is resolved."""
        assert self.image_key is not None
        return self.image_key

    @property
    def shapes(self) -> str:
        """`shapes_key` of a spec that is resolved."""
        assert self.shapes_key is not None
        return self.shapes_key

    def resolved(self, sdata: SpatialData) -> SectionSpec:
        """The same with image and shapes named. Raises ValueError for keys that are missing or not unique."""
        shapes_key = resolve_shapes(sdata, self.shapes_key, table_name=self.table_name, tissue_key=self.tissue_key)
        image_key = resolve_image(sdata, self.image_key, shapes_key=shapes_key)
        return dataclasses.replace(self, image_key=image_key, shapes_key=shapes_key)


def image_view(sdata: SpatialData, spec: SectionSpec, at_mpp: float) -> tuple[ImageView, float]:
    """The image at `at_mpp`, and how many pixels of the full-resolution image make one of the view."""
    image_key = spec.image
    levels = image_levels(sdata, image_key)
    warn_of_missing_chunks(sdata, image_key)
    own = image_mpp(sdata, image_key, spec.shapes_key, spec.mpp)
    check_resolution(own, at_mpp, image_key)
    step = at_mpp / own
    height, width = levels[0].sizes["y"], levels[0].sizes["x"]
    if step > MAX_FINER:
        raise ValueError(
            f"image {image_key!r} of {width} x {height} px would be {width * own:.3g} x {height * own:.3g} um at "
            f"mpp={own:.3g}, {width / step:.3g} x {height / step:.3g} px at the {at_mpp:g} um per pixel of the model. "
            "Correct mpp=: it is the micrometres of a pixel of the full-resolution image."
        )
    warn_of_mpp(sdata, image_key, spec.shapes_key, spec.mpp)
    best, scale = level_scale([(level.sizes["y"], level.sizes["x"]) for level in levels], step)
    return ImageView(pixels=levels[best].data, scale=scale, mpp=float(at_mpp)), step


def picture_digest(sdata: SpatialData, image_key: str) -> str:
    """Short hash of an image at its full resolution, by which it is recognised, whatever its name and its mpp."""
    levels = image_levels(sdata, image_key)
    return image_digest(ImageView(pixels=levels[0].data, scale=(1.0, 1.0), mpp=1.0)).hex()[:16]


def domain_view(sdata: SpatialData, spec: SectionSpec, factor: float = 1.0) -> ImageView:
    """The image at the resolution that domains are described at, were its mpp `factor` times what it is.

    A coarser image is magnified: that it is blurred then is what a domain should see.
    """
    levels = image_levels(sdata, spec.image)
    step = DOMAIN_MPP / (image_mpp(sdata, spec.image, spec.shapes_key, spec.mpp) * factor)
    best, scale = level_scale([(level.sizes["y"], level.sizes["x"]) for level in levels], step)
    return ImageView(pixels=levels[best].data, scale=scale, mpp=DOMAIN_MPP)
