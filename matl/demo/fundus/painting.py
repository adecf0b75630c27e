"""Paint lesions on the base photograph, in the base's own frame.

Each lesion touches only the pixels around it. Blood multiplies what lies below by its
transmission, as an absorber does; exudates and cotton wool cover it. Nothing here knows
of grades, patients or cameras, and the outline of a lesion depends on the lesion alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from matl.demo.fundus.anatomy import BASE_PX, PX_PER_UM, FloatImage, base_image
from matl.demo.fundus.lesions import Kind, Lesion

# What is left of red, green and blue behind a layer of blood, from the base's own vessels.
_THIN_BLOOD: Final = np.array([0.80, 0.38, 0.50], np.float32)
_BLOOD: Final = np.array([0.63, 0.22, 0.32], np.float32)
_POOLED_BLOOD: Final = np.array([128.0, 14.0, 12.0], np.float32)
_LIPID: Final = np.array([253.0, 226.0, 140.0], np.float32)
_COTTON_WOOL: Final = np.array([244.0, 214.0, 182.0], np.float32)
_SUPERSAMPLING: Final = 3


@dataclass(frozen=True, slots=True)
class Canvas:
    """The photograph being painted, and how much of each pixel lesions cover.

    ``colour`` has shape ``(BASE_PX, BASE_PX, 3)``, values 0 to 255; ``cover`` has shape
    ``(BASE_PX, BASE_PX)``, values 0 to 1. Both are owned and written by this module.
    """

    colour: FloatImage
    cover: FloatImage

    @property
    def lesion_area_mm2(self) -> float:
        """Area of retina under lesions."""
        return float(self.cover.sum(dtype=np.float64)) / (PX_PER_UM * 1000) ** 2


@dataclass(frozen=True, slots=True)
class _Window:
    """The pixels around a lesion and their place relative to its centre and direction."""

    rows: slice
    columns: slice
    along: FloatImage
    across: FloatImage

    @property
    def distance(self) -> FloatImage:
        return np.hypot(self.along, self.across)

    @property
    def bearing(self) -> FloatImage:
        return np.arctan2(self.across, self.along)


def paint(lesions: Iterable[Lesion]) -> Canvas:
    """Return the base photograph with ``lesions``, painted in the order given."""
    canvas = Canvas(base_image().copy(), np.zeros((BASE_PX, BASE_PX), np.float32))
    for lesion in lesions:
        _PAINTERS[lesion.kind](canvas, lesion, np.random.default_rng(lesion.shape_seed))
    return canvas


def _round_blood(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    around = _window(lesion, reach=1.6)
    small = lesion.kind is Kind.MICROANEURYSM
    ragged, edge_px = (0.05, 1.5) if small else (0.13, 1.4 + 0.25 * lesion.size_px)
    alpha = _blob(around, lesion.size_px, rng, ragged=ragged, edge_px=edge_px)
    # A clot is a lens: thick in the middle, thin towards its edge.
    away = np.minimum(around.distance / lesion.size_px, 1)
    depth = np.float32(rng.uniform(0.6, 0.9)) * (1 - 0.25 * away**2)
    _absorb(canvas, around, alpha * depth, _BLOOD)


def _flame(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    """Feathered streaks along the nerve fibres."""
    around = _window(lesion, reach=1.5)
    half_width = lesion.size_px * rng.uniform(0.22, 0.36)
    alpha = np.zeros_like(around.along)
    for _ in range(6):
        shift, aside = rng.normal(0, 0.22) * lesion.size_px, rng.normal(0, 0.5) * half_width
        length, width = rng.uniform(0.45, 0.85) * lesion.size_px, rng.uniform(0.25, 0.6)
        inside = ((around.along - shift) / length) ** 2
        inside = inside + ((around.across - aside) / (width * half_width)) ** 2
        alpha = np.maximum(alpha, np.clip(0.9 * (1.35 - inside), 0, 1))
    _absorb(canvas, around, alpha * np.float32(rng.uniform(0.6, 0.8)), _BLOOD)


def _exudate(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    around = _window(lesion, reach=1.8)
    alpha = _blob(around, lesion.size_px, rng, ragged=0.18, edge_px=1.0)
    _cover(canvas, around, alpha * rng.uniform(0.7, 0.95), _LIPID)


def _cotton_wool(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    """Several soft puffs side by side."""
    around = _window(lesion, reach=2.2)
    alpha = np.zeros_like(around.along)
    for _ in range(7):
        along, across = rng.normal(0, [0.5, 0.2]) * lesion.size_px
        spread = rng.uniform(0.22, 0.42) * lesion.size_px
        away = ((around.along - along) ** 2 + (around.across - across) ** 2) / spread**2
        alpha = alpha + (1 - alpha) * np.float32(0.7) * np.exp(-away)
    _cover(canvas, around, alpha.astype(np.float32) * rng.uniform(0.65, 0.85), _COTTON_WOOL)


def _bead(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    """A bulge of the vein: its own blood, a little wider than the calibre."""
    around = _window(lesion, reach=1.6)
    alpha = _blob(around, lesion.size_px, rng, ragged=0.08, edge_px=3) * np.float32(0.8)
    colour = canvas.colour[round(lesion.y), round(lesion.x)] * np.float32(0.93)
    pixels = canvas.colour[around.rows, around.columns]
    darker = np.minimum(pixels, pixels + alpha[..., None] * (colour - pixels))
    canvas.colour[around.rows, around.columns] = darker
    _note_cover(canvas, around, alpha)


def _tuft(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    """A fan of fine, tortuous, looping vessels from one root."""
    around = _window(lesion, reach=1.35)
    height, width = around.along.shape
    fine = _SUPERSAMPLING
    sheet = Image.new("L", (width * fine, height * fine), 0)
    pen = ImageDraw.Draw(sheet)
    root = np.array([lesion.x - around.columns.start, lesion.y - around.rows.start])
    facing, fan = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 2.2)
    for _ in range(int(rng.integers(12, 20))):
        path = _tortuous_path(root, facing + rng.uniform(-fan, fan), lesion.size_px, rng)
        calibre = rng.uniform(0.7, 1.5)
        dots = [(float(x) * fine, float(y) * fine) for x, y in path]
        pen.line(dots, fill=255, width=max(round(calibre * fine), 1), joint="curve")
    drawn = sheet.resize((width, height), Image.Resampling.BOX)
    alpha = np.asarray(drawn, np.float32) * np.float32(0.85 / 255)
    _absorb(canvas, around, alpha, _THIN_BLOOD)


def _tortuous_path(
    root: NDArray[np.float64], heading: float, spread_px: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Walk away from the root with a wavering heading, shape ``(steps, 2)``."""
    step = 1.5
    steps = int(rng.uniform(0.8, 1.8) * spread_px / step)
    waver = rng.uniform(0.15, 0.35) * np.sin(
        np.arange(steps) * rng.uniform(0.25, 0.6) + rng.uniform(0, 6.3)
    )
    curl = rng.normal(0, 0.09)
    turns = heading + np.cumsum(waver + curl + rng.normal(0, 0.1, steps))
    moves = step * np.column_stack([np.cos(turns), np.sin(turns)])
    return root + np.cumsum(moves, axis=0)


def _boat(canvas: Canvas, lesion: Lesion, rng: np.random.Generator) -> None:
    """Pooled blood: a level top, a curved keel, opaque and darker towards the keel."""
    around = _window(lesion, reach=1.3)
    depth = lesion.size_px * rng.uniform(0.5, 0.85)
    keel = depth * np.clip(1 - np.abs(around.along / lesion.size_px) ** 2.4, 0, 1) ** 0.6
    from_level = around.across + 0.45 * depth
    ripple = rng.uniform(0.03, 0.09) * depth
    level = ripple * np.sin(around.along / lesion.size_px * rng.uniform(3, 6))
    below_level = np.clip((from_level - level) / 2.5 + 0.5, 0, 1)
    above_keel = np.clip((keel - from_level) / 3.5 + 0.5, 0, 1)
    # Red cells sink: the film is thinner, and the retina shows through, near the level.
    thickness = np.clip(0.68 + 0.4 * from_level / depth, 0.6, 0.95)
    bow = np.clip((lesion.size_px - np.abs(around.along)) / 2.5, 0, 1)
    alpha = below_level * above_keel * bow * thickness
    _cover(canvas, around, alpha.astype(np.float32), _POOLED_BLOOD)


def _window(lesion: Lesion, *, reach: float) -> _Window:
    half = int(np.ceil(reach * lesion.size_px)) + 3
    x, y = round(lesion.x), round(lesion.y)
    rows = slice(max(y - half, 0), min(y + half + 1, BASE_PX))
    columns = slice(max(x - half, 0), min(x + half + 1, BASE_PX))
    dy, dx = np.mgrid[rows, columns].astype(np.float32)
    dx, dy = dx - np.float32(lesion.x), dy - np.float32(lesion.y)
    cos, sin = np.float32(np.cos(lesion.angle)), np.float32(np.sin(lesion.angle))
    return _Window(rows, columns, cos * dx + sin * dy, cos * dy - sin * dx)


def _blob(
    around: _Window, radius_px: float, rng: np.random.Generator, *, ragged: float, edge_px: float
) -> FloatImage:
    """Coverage of a disc whose outline wavers by ``ragged`` of its radius."""
    bearing = around.bearing
    outline = np.ones_like(bearing)
    for harmonic in (2, 3, 5):
        size, phase = rng.normal(0, 1.5 * ragged / harmonic), rng.uniform(0, 2 * np.pi)
        outline += np.float32(size) * np.cos(harmonic * bearing + np.float32(phase))
    alpha: FloatImage = np.clip((radius_px * outline - around.distance) / edge_px + 0.5, 0, 1)
    return alpha.astype(np.float32)


def _absorb(canvas: Canvas, around: _Window, alpha: FloatImage, left: FloatImage) -> None:
    pixels = canvas.colour[around.rows, around.columns]
    pixels *= 1 - alpha[..., None] * (1 - left)
    _note_cover(canvas, around, alpha)


def _cover(canvas: Canvas, around: _Window, alpha: FloatImage, colour: FloatImage) -> None:
    pixels = canvas.colour[around.rows, around.columns]
    pixels += alpha[..., None] * (colour - pixels)
    _note_cover(canvas, around, alpha)


def _note_cover(canvas: Canvas, around: _Window, alpha: FloatImage) -> None:
    cover = canvas.cover[around.rows, around.columns]
    np.maximum(cover, alpha, out=cover)


_PAINTERS: Final[Mapping[Kind, Callable[[Canvas, Lesion, np.random.Generator], None]]] = {
    Kind.MICROANEURYSM: _round_blood,
    Kind.DOT_HAEMORRHAGE: _round_blood,
    Kind.BLOT_HAEMORRHAGE: _round_blood,
    Kind.FLAME_HAEMORRHAGE: _flame,
    Kind.HARD_EXUDATE: _exudate,
    Kind.COTTON_WOOL_SPOT: _cotton_wool,
    Kind.VENOUS_BEADING: _bead,
    Kind.NEW_VESSELS: _tuft,
    Kind.PRERETINAL_HAEMORRHAGE: _boat,
}
