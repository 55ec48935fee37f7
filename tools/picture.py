"""Pictures of an organ: the windowed slice where it is largest, with its outline, in radiological display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tumorchain_agent.errors import InputError
from tumorchain_agent.records import Picture
from tumorchain_agent.tools.organs import display_name, organ_ids

if TYPE_CHECKING:
    from tumorchain_agent.tools.labels import LabelMap
    from tumorchain_agent.tools.scan import CT

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")
MAX_BYTES: Final = 256 * 1024

_NORMAL: Final = {"sagittal": 0, "coronal": 1, "axial": 2}
_LETTERS: Final = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""Left, right, top and bottom of the picture: patient right is on the left, anterior or superior on top."""
_OUTLINE: Final = 255
"""Palette index of the outline; 0..254 are greys."""
_OUTLINE_RGB: Final = (255, 214, 10)
_WHITE: Final = 254
_BODY_HU: Final = -500.0
_MARGIN_MM: Final = 8.0
_TABLE_MM: Final = 9.0
"""Anything in air that is thinner than this may be cut off, e.g. the table."""
_SMALLEST_SIDE: Final = 176
_CAPTION_HEIGHT: Final = 24
_MARKED_BELOW_PX: Final = 14


@dataclass(frozen=True)
class PictureInfo:
    """What a picture shows."""

    organ: str
    plane: Plane
    slice_index: int
    """Voxel index along the plane's normal, RAS+ grid."""
    position_mm: float
    """Of the organ's centre in that slice, along the normal (x, y or z of RAS+)."""
    width: int
    height: int

    def record(self, uri: str) -> Picture:
        return Picture(
            uri=uri,
            organ=self.organ,
            plane=self.plane,
            slice_index=self.slice_index,
            position_mm=self.position_mm,
            width=self.width,
            height=self.height,
        )


@dataclass(frozen=True)
class _Slice:
    """A slice as displayed: rows top to bottom, columns left to right."""

    hu: NDArray[np.float32]
    mask: NDArray[np.bool_]
    mm: tuple[float, float]
    """Height and width of a pixel."""


def organ_pictures(
    ct: CT,
    labelmap: LabelMap,
    organ: str,
    planes: Sequence[Plane] = PLANES,
    *,
    size: int = 512,
    window_hu: float = 400.0,
    level_hu: float = 40.0,
) -> list[tuple[PictureInfo, bytes]]:
    """One PNG (≤ 256 kB) for each plane, through the organ's largest cross-section; [] for an absent organ.

    Radiological display: patient right on the left; sagittal with anterior on the left. Millimetres are
    isotropic on screen; ``size`` is the longer side in pixels, to which a caption strip is added. The outline
    lies on the mask's boundary. Raises UnknownOrganError, and InputError for a plane or size out of range.
    """
    if not 64 <= size <= 2048:
        raise InputError(f"picture size {size} is out of range; choose 64 to 2048 pixels")
    for plane in planes:
        if plane not in _NORMAL:
            raise InputError(f"{plane!r} is not a plane; choose {', '.join(PLANES)}")
    chosen = np.zeros(256, bool)
    chosen[list(organ_ids(organ))] = True
    areas = _areas(labelmap.labels, chosen)
    if not areas[0].any():
        return []
    window = (level_hu - window_hu / 2, window_hu)
    return [_picture(ct, labelmap.labels, chosen, areas, organ, plane, size, window) for plane in planes]


@dataclass(frozen=True)
class Outline:
    """What ``outlined_slice`` draws around: a mask [x, y] of the slice, and its colour."""

    mask: NDArray[np.bool_]
    rgb: tuple[int, int, int]


def outlined_slice(
    hu: NDArray[np.float32],
    spacing_mm: tuple[float, float],
    outlines: Sequence[Outline],
    *,
    size: int = 512,
    window_hu: float = 400.0,
    level_hu: float = 40.0,
) -> Image.Image:
    """An axial slice [x, y] of RAS+ as a square RGB picture of ``size`` pixels, in radiological display.

    Millimetres are isotropic; air around the body is cut off; later outlines lie over earlier ones.
    """
    masks = [_displayed(outline.mask) for outline in outlines]
    grey, mm = _displayed(hu), (spacing_mm[1], spacing_mm[0])
    rows, columns = _bounds(_Slice(grey, np.logical_or.reduce([np.zeros(grey.shape, bool), *masks]), mm))
    grey = np.clip((grey[rows, columns] - (level_hu - window_hu / 2)) / window_hu, 0, 1) * _WHITE
    px_per_mm = size / max(grey.shape[0] * mm[0], grey.shape[1] * mm[1])
    height, width = (max(1, round(n * step * px_per_mm)) for n, step in zip(grey.shape, mm, strict=True))
    top, left = (size - height) // 2, (size - width) // 2
    inside = np.s_[top : top + height, left : left + width]
    frame = np.zeros((size, size), np.uint8)
    frame[inside] = np.clip(_resize(grey, height, width, Image.Resampling.BICUBIC), 0, _WHITE)
    image = Image.fromarray(frame)
    _letters(image, "axial", size)
    _scale_bar(image, px_per_mm, size)
    canvas = np.array(image.convert("RGB"))
    for outline, mask in zip(outlines, masks, strict=True):
        smooth = _resize(mask[rows, columns], height, width, Image.Resampling.BILINEAR)
        canvas[inside][_outline(smooth > min(0.5, float(smooth.max()) / 2))] = outline.rgb
    return Image.fromarray(canvas)


def _areas(labels: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Organ voxels in every slice along x, y and z."""
    areas = [np.zeros(length, np.int64) for length in labels.shape]
    for index in range(labels.shape[2]):
        mask = chosen[labels[:, :, index]]
        if mask.any():
            areas[0] += mask.sum(axis=1)
            areas[1] += mask.sum(axis=0)
            areas[2][index] = mask.sum()
    return areas


def _picture(
    ct: CT,
    labels: NDArray[np.uint8],
    chosen: NDArray[np.bool_],
    areas: list[NDArray[np.int64]],
    organ: str,
    plane: Plane,
    size: int,
    window: tuple[float, float],
) -> tuple[PictureInfo, bytes]:
    normal = _NORMAL[plane]
    index = int(areas[normal].argmax())
    mask = chosen[_plane(labels, normal, index)]
    position = _position_mm(ct.affine, mask, normal, index)
    across, up = (step for axis, step in enumerate(ct.spacing_mm) if axis != normal)
    shown = _crop(_Slice(_displayed(_plane(ct.hu, normal, index)), _displayed(mask), (up, across)))
    caption = (
        display_name(organ).capitalize(),
        plane,
        f"{'xyz'[normal]} = {position:.0f} mm",
        f"slice index {index}",
        f"W {window[1]:.0f} L {window[0] + window[1] / 2:.0f}",
    )
    canvas, data = _fitting_png(shown, plane, caption, size, window)
    return PictureInfo(organ, plane, index, position, canvas.shape[1], canvas.shape[0]), data


def _plane(volume: NDArray[Any], normal: int, index: int) -> NDArray[Any]:
    """A view: nothing but the slice is read from memory."""
    where: list[slice | int] = [slice(None)] * 3
    where[normal] = index
    plane: NDArray[Any] = volume[tuple(where)]
    return plane


def _position_mm(affine: NDArray[np.float64], mask: NDArray[np.bool_], normal: int, index: int) -> float:
    centre = np.insert(np.argwhere(mask).mean(axis=0), normal, index)
    return round(float(affine[normal, :3] @ centre + affine[normal, 3]), 2)


def _displayed(plane: NDArray[Any]) -> NDArray[Any]:
    """RAS+ slice → rows from anterior or superior, columns from patient right or anterior."""
    return plane.T[::-1, ::-1]


def _crop(shown: _Slice) -> _Slice:
    rows, columns = _bounds(shown)
    return _Slice(shown.hu[rows, columns], shown.mask[rows, columns], shown.mm)


def _bounds(shown: _Slice) -> tuple[slice, slice]:
    """Rows and columns without the air and the table around the body, and with all of the organ."""
    whole = slice(0, shown.hu.shape[0]), slice(0, shown.hu.shape[1])
    reach = int(np.clip(_TABLE_MM / 2 / max(shown.mm), 1, 7))
    body = ~_grown(shown.hu <= _BODY_HU, reach)
    if not body.any():
        return whole
    body |= shown.mask
    rows, columns = (
        _span(np.any(body, axis=1 - axis), _MARGIN_MM / shown.mm[axis] + reach, body.shape[axis])
        for axis in (0, 1)
    )
    return rows, columns


def _span(used: NDArray[np.bool_], margin: float, length: int) -> slice:
    first, last = np.flatnonzero(used)[[0, -1]]
    return slice(max(0, int(first - margin)), min(length, int(last + margin) + 2))


def _fitting_png(
    shown: _Slice, plane: Plane, caption: Sequence[str], size: int, window: tuple[float, float]
) -> tuple[NDArray[np.uint8], bytes]:
    """Draw and encode; fewer greys, then fewer pixels, until it is small enough."""
    while True:
        canvas = _draw(shown, plane, caption, size, window)
        for step in (1, 4, 8):
            data = _png(np.where(canvas == _OUTLINE, _OUTLINE, canvas // step * step).astype(np.uint8))
            if len(data) <= MAX_BYTES:
                return canvas, data
        size = size * 4 // 5


def _png(canvas: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(canvas)
    image.putpalette([*(grey for grey in range(255) for _ in range(3)), *_OUTLINE_RGB])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _draw(
    shown: _Slice, plane: Plane, caption: Sequence[str], size: int, window: tuple[float, float]
) -> NDArray[np.uint8]:
    """Palette indices [height, width]: the slice in the middle of its frame, its marks, the caption below."""
    heights = [shown.hu.shape[axis] * shown.mm[axis] for axis in (0, 1)]
    px_per_mm = size / max(heights)
    rows, columns = (max(1, round(length * px_per_mm)) for length in heights)
    grey = np.clip((shown.hu - window[0]) / window[1], 0, 1) * _WHITE
    picture = np.clip(_resize(grey, rows, columns, Image.Resampling.BICUBIC), 0, _WHITE).astype(np.uint8)
    smooth = _resize(shown.mask, rows, columns, Image.Resampling.BILINEAR)
    mask = smooth > min(0.5, float(smooth.max()) / 2)

    height, width = max(rows, _SMALLEST_SIDE), max(columns, _SMALLEST_SIDE)
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = np.s_[top : top + rows, left : left + columns]
    frame = np.zeros((height + _CAPTION_HEIGHT, width), np.uint8)
    frame[inside] = picture
    image = Image.fromarray(frame)
    _letters(image, plane, height)
    _scale_bar(image, px_per_mm, height)
    _caption(image, caption, height)
    canvas = np.array(image)
    marks = np.zeros_like(canvas, bool)
    marks[inside] = _outline(mask)
    marks[:height] |= _marker(mask, (top, left), (height, width))
    halo = _grown(marks, 1) & ~marks
    halo[height:] = False
    canvas[halo] = canvas[halo] // 3
    canvas[marks] = _OUTLINE
    return canvas


def _resize(array: NDArray[Any], rows: int, columns: int, filter_: Image.Resampling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(array.astype(np.float32)).resize((columns, rows), filter_))


def _grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Two pixels wide, one on each side of the boundary; none along the picture's own edge."""
    return _grown(mask, 1) & _grown(~mask, 1)


def _marker(mask: NDArray[np.bool_], offset: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A ring around an organ that is too small to be seen by its outline alone."""
    pixels = np.argwhere(mask)
    ring = Image.new("1", (shape[1], shape[0]))
    if int((pixels.max(axis=0) - pixels.min(axis=0)).max()) < _MARKED_BELOW_PX:
        row, column = pixels.mean(axis=0) + offset
        radius = _MARKED_BELOW_PX + 4
        box = (column - radius, row - radius, column + radius, row + radius)
        ImageDraw.Draw(ring).ellipse(box, outline=1, width=2)
    return np.array(ring)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(image: Image.Image, at: tuple[float, float], text: str, anchor: str, size: int) -> None:
    ImageDraw.Draw(image).text(
        at, text, fill=_WHITE, font=_font(size), anchor=anchor, stroke_width=2, stroke_fill=0
    )


def _letters(image: Image.Image, plane: Plane, height: int) -> None:
    middle = (image.width / 2, height / 2)
    places: list[tuple[float, float, str]] = [(6, middle[1], "lm"), (image.width - 6, middle[1], "rm")]
    places += [(middle[0], 5, "mt"), (middle[0], height - 6, "mb")]
    for letter, (x, y, anchor) in zip(_LETTERS[plane], places, strict=True):
        _text(image, (x, y), letter, anchor, 17)


def _scale_bar(image: Image.Image, px_per_mm: float, height: int) -> None:
    longest = 0.3 * image.width / px_per_mm
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100, 200, 500) if mm <= longest), default=1)
    right, bottom = image.width - 12, height - 10
    left = right - round(length * px_per_mm)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, bottom - 4, right + 1, bottom + 1), fill=0)
    draw.rectangle((left, bottom - 3, right, bottom), fill=_WHITE)
    _text(image, ((left + right) / 2, bottom - 8), f"{length} mm", "mb", 13)


def _caption(image: Image.Image, parts: Sequence[str], height: int) -> None:
    """As many parts, from the first, as fit."""
    font = _font(13)
    kept = list(parts)
    while len(kept) > 1 and font.getlength("  ·  ".join(kept)) > image.width - 16:
        kept.pop()
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height, image.width, image.height), fill=24)
    draw.text((8, height + _CAPTION_HEIGHT / 2), "  ·  ".join(kept), fill=_WHITE, font=font, anchor="lm")
