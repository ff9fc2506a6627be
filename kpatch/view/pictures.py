"""`Map`: where a tensor was edited and by how much, as a small picture."""

import base64
import io
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

CELLS = 96  # the most cells of a picture along an axis
TILES = 256  # the most filters of a convolution that are drawn one by one
PICTURES = 24  # the most pictures of a figure
PIXELS = 128  # the width or height of a picture on a page, whichever is longer

# Of Okabe and Ito's palette, which colour-blind readers can tell apart, on light and on dark ground.
MORE, LESS, SAME, UNKNOWN = (230, 126, 0), (0, 114, 178), (128, 128, 128), (204, 121, 167)

TICKS = 16  # the most labels on an axis of a heat map
GROUND = 0.12  # how strong the grey is of entries that were not edited


class Map:
    """The largest change in each cell of a picture of a tensor. A cell stands for one entry, or for several.

    The last axis of the tensor runs to the right, and all others run down. Of a tensor of four or five axes, a kernel
    of a convolution, each filter is a tile: the largest change along its input channels.

    Attributes:
        cells: a float64 matrix; NaN if no entry of the cell was edited, 0 if edits kept the values.
        note: a line under the picture, if it does not show every entry.

    Example:
        >>> changed = Map((4, 3))
        >>> changed.add(np.array([0, 4]), np.array([1.0, -2.0]))
        >>> changed.cells[:2].tolist()
        [[1.0, nan, nan], [nan, -2.0, nan]]
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.note = ""
        self._tiled = len(self.shape) in (4, 5) and 0 < self.shape[-1] <= TILES
        rows, columns = self._extent()
        self._every = max(1, math.ceil(rows / CELLS)), max(1, math.ceil(columns / CELLS))
        size = [max(1, math.ceil(n / every)) for n, every in zip((rows, columns), self._every, strict=True)]
        self._high, self._low = np.full(size, -np.inf), np.full(size, np.inf)

    def add(self, flat: np.ndarray, change: np.ndarray) -> None:
        """Adds the changes of entries, given by their flat offsets. NaN counts as an infinite change."""
        down, right = self._place(np.asarray(flat))
        cell = down // self._every[0] * self._high.shape[1] + right // self._every[1]
        change = np.asarray(change, "float64")
        change = np.where(np.isnan(change), np.inf, change)
        np.maximum.at(self._high.reshape(-1), cell, change)
        np.minimum.at(self._low.reshape(-1), cell, change)

    @property
    def cells(self) -> np.ndarray:
        largest = np.where(self._high >= -self._low, self._high, self._low)
        return np.where(self._high == -np.inf, np.where(self._low == np.inf, np.nan, largest), largest)

    def _extent(self) -> tuple[int, int]:
        if self._tiled:
            height, width = self._tile
            across = self._across
            return math.ceil(self.shape[-1] / across) * (height + 1) - 1, across * (width + 1) - 1
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1

    @property
    def _tile(self) -> tuple[int, int]:
        """The height and width of a tile: the axes of space, the first two of three as one."""
        return math.prod(self.shape[:-3]), self.shape[-3]

    @property
    def _across(self) -> int:
        return math.ceil(math.sqrt(self.shape[-1]))

    def _place(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self._tiled:
            return _divided(flat, self.shape[-1] if self.shape else 1)
        rest, tile = _divided(flat, self.shape[-1])
        down, right = _divided(rest // self.shape[-2], self.shape[-3])
        below, beside = _divided(tile, self._across)
        height, width = self._tile
        return below * (height + 1) + down, beside * (width + 1) + right

    def image(self) -> np.ndarray:
        """The picture as RGBA: orange is more, blue is less, the stronger the more; grey was written, unchanged."""
        cells = self.cells
        known = np.abs(cells[np.isfinite(cells)])
        strength = np.abs(cells) / max(known.max(initial=0.0), np.finfo("float64").tiny)
        picture = np.zeros((*cells.shape, 4), "uint8")
        for where, colour in ((cells > 0, MORE), (cells < 0, LESS), (cells == 0, SAME), (np.isinf(cells), UNKNOWN)):
            picture[where, :3] = colour
        shades = np.where(cells == 0, 0.5, 0.3 + 0.7 * np.minimum(np.nan_to_num(strength, nan=0.0, posinf=1.0), 1.0))
        picture[..., 3] = np.where(np.isnan(cells), 255 * GROUND * self._inside(), np.round(255 * shades))
        picture[np.isnan(cells), :3] = SAME
        return picture

    def _inside(self) -> np.ndarray:
        """Which cells stand for entries, and not for a gap between two tiles."""
        if not self._tiled:
            return np.ones(self._high.shape, bool)
        (height, width), (down, right) = self._tile, self._every
        row, column = np.ogrid[: self._high.shape[0], : self._high.shape[1]]
        below, beside = row * down // (height + 1), column * right // (width + 1)
        gap = (row * down % (height + 1) == height) | (column * right % (width + 1) == width)
        return ~gap & (below * self._across + beside < self.shape[-1])

    def html(self, alt: str = "the edited entries", told: str = "") -> str:
        """The picture as an element of a page."""
        image = self.image()
        height, width = image.shape[:2]
        scale = PIXELS / max(height, width)
        size = f"max-width:none;width:{max(6, round(width * scale))}px;height:{max(6, round(height * scale))}px"
        return (
            f'<img class="kpatch-map" style="{size}" alt="{alt}" title="{told or self._told()}" '
            f'src="data:image/png;base64,{base64.b64encode(png(image)).decode()}">'
            + f"<br>{self.note}"
            * bool(self.note)
        )

    def draw(self, axes: Any) -> None:
        """Draws the picture on axes of matplotlib."""
        axes.imshow(self.image(), interpolation="nearest", aspect="auto" if 1 in self.cells.shape else "equal")
        axes.set_xlabel(self.note, fontsize=8)

    def _told(self) -> str:
        cells, (down, right) = self.cells[np.isfinite(self.cells)], self._every
        if not cells.size:
            return "nothing was edited"
        several = f"; a cell shows the largest change of {down} × {right} entries" * (down * right > 1)
        return f"changed by {cells.min():.4g} to {cells.max():.4g}{several}"


def _divided(number: np.ndarray, by: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder, for which `np.divmod` takes ten times as long."""
    quotient = number // by
    return quotient, number - quotient * by


def png(image: np.ndarray) -> bytes:
    """An RGBA picture of 8 bits as a file (https://www.w3.org/TR/png-3/)."""
    height, width = image.shape[:2]
    header = struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def _figures() -> Any:
    """The class of figures, which a notebook shows also if nothing has imported pyplot."""
    from matplotlib.figure import Figure

    class Pictures(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    return Pictures


def figure(pictures: Sequence[tuple[str, Callable[[], Map]]]) -> Any:
    """The pictures, pairs of a title and a function that makes it, side by side as a figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    shown = pictures[:PICTURES]
    across = min(4, max(1, len(shown)))
    down = math.ceil(len(shown) / across) or 1
    drawn = _figures()(figsize=(3.2 * across, 3.2 * down), layout="constrained")
    if len(shown) < len(pictures):
        drawn.suptitle(f"the first {len(shown)} of {len(pictures):,}")
    for number, (title, picture) in enumerate(shown):
        axes = drawn.add_subplot(down, across, number + 1)
        picture().draw(axes)
        axes.set_title(title, fontsize=9, parse_math=False)  # `$` is that of a `$name`
        axes.set_xticks([])
        axes.set_yticks([])
    return drawn


def heat_map(axes: Mapping[str, Sequence[Any]], values: np.ndarray) -> Any:
    """An array as a figure of matplotlib, with its axes named: a map of two, the second to the right; of one, a line.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    drawn = _figures()(figsize=(5, 3.6), layout="constrained")
    plot = drawn.add_subplot()
    names, labels = list(axes), [list(map(str, each)) for each in axes.values()]
    if values.ndim == 1:
        plot.plot(values, color=np.array(LESS) / 255, marker="o")
    else:
        colours: dict[str, Any] = {"cmap": "cividis"}
        if nearest_to_zero(values) == 0:
            largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
            colours = {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
        image = plot.imshow(values, **colours, aspect="auto", interpolation="nearest")
        drawn.colorbar(image)
        plot.set_ylabel(names[0])
        _tick(plot.yaxis, labels[0])
    plot.set_xlabel(names[-1])
    _tick(plot.xaxis, labels[-1])
    return drawn


def nearest_to_zero(values: np.ndarray) -> float:
    """The value that a picture starts from: 0, unless all values are on one side of it."""
    known = values[np.isfinite(values)]
    return float(max(known.min(initial=np.inf), 0.0) + min(known.max(initial=-np.inf), 0.0)) if known.size else 0.0


def _tick(axis: Any, labels: Sequence[str]) -> None:
    every = max(1, math.ceil(len(labels) / TICKS))
    axis.set_ticks(range(0, len(labels), every), labels[::every])
