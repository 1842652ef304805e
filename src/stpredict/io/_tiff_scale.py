"""Micrometres per pixel, as TIFF files state them: OME metadata, ImageJ's unit, resolution tags."""

from __future__ import annotations

import logging
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPageSeries

logger = logging.getLogger("stpredict")

UM = {
    **dict.fromkeys(("µm", "μm", "um", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1.0),
    "pm": 1e-6,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
}
"""Micrometres in each unit of length; OME writes the micro sign, others the Greek letter."""

RESOLUTION_UNITS = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre
PLAUSIBLE_MPP = (0.08, 5.0)  # of slide scanners (100x to 2x); printers, screens and wrong units lie beyond
PRINTERS_DPI = (72, 96, 150, 200, 240, 300, 360, 400, 600, 720, 1200, 2400, 4800, 6400, 9600)


def stated_mpp(file: TiffFile, index: int, series: TiffPageSeries) -> tuple[float, float] | None:
    """Micrometres per pixel (x, y) of one image of the file, or None where it states none that can be a slide's.

    In this order: OME PhysicalSizeX and Y with their unit; ImageJ's unit; the resolution tags where they give 0.08 to
    5 um and no printer's dots per inch. What was taken, or why a tag was not, goes to the log.
    """
    name = file.filename
    pixels = _ome_pixels(file, index)
    if pixels is not None and "PhysicalSizeX" in pixels.attrib:
        sizes = _ome_sizes(pixels)
        if sizes is not None and not _plausible(sizes):
            logger.warning("%s: OME PhysicalSize is %g um, which no slide scanner has; not used", name, sizes[0])
            return None
        return None if sizes is None else _logged(name, "OME PhysicalSize", sizes)
    per_unit = _resolution(series)
    if per_unit is None:
        return None
    x, y, unit = per_unit
    imagej = str((file.imagej_metadata or {}).get("unit", "")).lower()
    if imagej in UM:
        return _logged(name, "ImageJ's unit", (UM[imagej] / x, UM[imagej] / y))
    if unit not in RESOLUTION_UNITS:
        return None
    mpp = RESOLUTION_UNITS[unit] / x, RESOLUTION_UNITS[unit] / y
    if not _plausible(mpp) or any(abs(RESOLUTION_UNITS[2] / mpp[0] - dpi) < 0.005 * dpi for dpi in PRINTERS_DPI):
        logger.info("%s: the resolution tags give %g um per pixel, which is no slide scanner's; not used", name, mpp[0])
        return None
    return _logged(name, "the resolution tags", mpp)


def _plausible(mpp: tuple[float, float]) -> bool:
    return all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in mpp)


def channel_names(file: TiffFile, index: int) -> tuple[str, ...]:
    """Names of the OME channels of one image, in lower case; empty where the file has none."""
    pixels = _ome_pixels(file, index)
    if pixels is None:
        return ()
    return tuple(channel.get("Name", "").strip().lower() for channel in pixels.findall("{*}Channel"))


def _ome_pixels(file: TiffFile, index: int) -> ElementTree.Element | None:
    if not file.is_ome or file.ome_metadata is None:
        return None
    images = ElementTree.fromstring(file.ome_metadata).findall("{*}Image/{*}Pixels")
    return images[index] if index < len(images) else None


def _ome_sizes(pixels: ElementTree.Element) -> tuple[float, float] | None:
    sizes = []
    for axis in ("X", "Y"):
        size = float(pixels.get(f"PhysicalSize{axis}", pixels.attrib["PhysicalSizeX"]))
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the schema's default
        if unit not in UM or not size > 0:
            logger.info("OME PhysicalSize%s is %g %s, which is no length; not used", axis, size, unit)
            return None
        sizes.append(size * UM[unit])
    return sizes[0], sizes[1]


def _resolution(series: TiffPageSeries) -> tuple[float, float, int] | None:
    """Pixels per unit along x and y, and the unit's code, from the tags of the image's first page."""
    tags = series.keyframe.tags
    found = [tags.get(tag) for tag in ("XResolution", "YResolution")]
    if any(tag is None or tag.value[0] == 0 or tag.value[1] == 0 for tag in found):
        return None
    x, y = (tag.value[0] / tag.value[1] for tag in found if tag is not None)
    unit = tags.get("ResolutionUnit")
    return x, y, int(unit.value) if unit is not None else 2  # the standard's default is the inch


def _logged(name: str, source: str, mpp: tuple[float, float]) -> tuple[float, float]:
    logger.info("%s: %g x %g um per pixel by %s", name, *mpp, source)
    return mpp
