"""Integer windows on a pixel grid, and tiles with a halo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels: rows ``[y0, y0 + height)``, columns ``[x0, x0 + width)``.

    It may reach outside the image; whoever reads decides what lies there.

    Parameters
    ----------
    y0, x0 : int
        First row and first column.
    height, width : int
        Size in pixels, at least 0.

    Raises
    ------
    ValueError
        For a negative size.
    """

    y0: int
    x0: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            raise ValueError(f"a window cannot have a negative size, got height {self.height} and width {self.width}.")

    @property
    def y1(self) -> int:
        """The first row below the window."""
        return self.y0 + self.height

    @property
    def x1(self) -> int:
        """The first column right of the window."""
        return self.x0 + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def intersect(self, other: Window) -> Window | None:
        """The rectangle that two windows share.

        Parameters
        ----------
        other : Window
            A window of the same grid.

        Returns
        -------
        Window | None
            The common rectangle, or None where the two share no pixel.
        """
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Window(y0, x0, y1 - y0, x1 - x0) if y1 > y0 and x1 > x0 else None

    def pad(self, px: int) -> Window:
        """The window grown by `px` pixels on each of its four sides.

        Parameters
        ----------
        px : int
            Pixels by which each side moves outwards.

        Returns
        -------
        Window
            The larger window.
        """
        return Window(self.y0 - px, self.x0 - px, self.height + 2 * px, self.width + 2 * px)

    def slices(self, origin: Window | None = None) -> tuple[slice, slice]:
        """Row and column slices that cut this window out of an array.

        Parameters
        ----------
        origin : Window, optional
            The window that the array shows; None: its corner is (0, 0).

        Returns
        -------
        tuple[slice, slice]
            Rows, columns.
        """
        y, x = (origin.y0, origin.x0) if origin is not None else (0, 0)
        return slice(self.y0 - y, self.y1 - y), slice(self.x0 - x, self.x1 - x)


@dataclass(frozen=True)
class Tile:
    """A tile of a section: the `core` it answers for, and the larger `read` window it has to see.

    Parameters
    ----------
    core : Window
        What the tile answers for.
    read : Window
        What it has to see: the core and a halo around it.
    """

    core: Window
    read: Window


def tiles(height: int, width: int, *, core_px: int, halo_px: int) -> list[Tile]:
    """Tiles in row-major order whose cores partition a (height, width) image.

    Parameters
    ----------
    height, width : int
        Size of the image in working pixels, at least 1.
    core_px, halo_px : int
        Side of a core and width of the halo around it, in pixels. Cores at the lower and right border keep their full
        size and reach over the border, so that every tile has one shape and every grid of a stride that divides
        `core_px` stays anchored at pixel (0, 0).

    Raises
    ------
    ValueError
        For an empty image, a core below 1 px or a negative halo.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has nothing to tile.")
    if core_px < 1 or halo_px < 0:
        raise ValueError(f"core_px must be at least 1 and halo_px at least 0, got {core_px} and {halo_px}.")
    cores = [Window(y, x, core_px, core_px) for y in range(0, height, core_px) for x in range(0, width, core_px)]
    return [Tile(core=core, read=core.pad(halo_px)) for core in cores]
