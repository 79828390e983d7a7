"""Images in labelled rows, with words below each column."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BAND = 8
"""Columns side by side; more of them continue below."""

_CAPTION_HEIGHT = 0.55
"""Inches that the words below a column take."""

_LONGEST = 18
"""Characters of a line below a column."""


def draw_grid(rows: Mapping[str, np.ndarray], captions: Sequence[str] = ()) -> Figure:
    """Draws images, one column for each place in the batches.

    Args:
        rows: Batches by the label of their row, from top to bottom: float in [0, 1], shape
            `(count, height, width, 1 or 3)`; what is beyond is shown as black or white.
        captions: Words below each column, as lines; none where empty.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    columns = min(count, _BAND)
    starts = range(0, count, _BAND)
    inches = 0.9 if captions else 0.6
    words = _CAPTION_HEIGHT if captions else 0.0
    figure = Figure(
        figsize=(
            inches * columns + 1.4,
            (inches * height / width * len(rows) + words) * len(starts),
        ),
        layout="constrained",
    )
    all_axes = figure.subplots(len(rows) * len(starts), 1, squeeze=False)
    for band, start in zip(all_axes.reshape(len(starts), len(rows)), starts, strict=True):
        for axes, (label, images) in zip(band, rows.items(), strict=True):
            _draw_strip(axes, label, _strip(images[start : start + _BAND], columns))
        _draw_captions(band[-1], captions[start : start + _BAND], height, width)
    return figure


def plain_words(text: str) -> str:
    """Returns a name on one line, cut where it is too long to stand below an image."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _draw_strip(axes: Axes, label: str, strip: np.ndarray) -> None:
    axes.imshow(strip, interpolation="nearest")
    axes.set_ylabel(label, rotation=0, ha="right", va="center", size=9, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_captions(axes: Axes, captions: Sequence[str], height: int, width: int) -> None:
    step = width + _gap(width)
    for place, caption in enumerate(captions):
        axes.text(
            place * step + width / 2 - 0.5,
            height + 0.04 * height,
            caption,
            ha="center",
            va="top",
            size=6,
            parse_math=False,
        )


def _gap(width: int) -> int:
    return max(1, width // 16)


def _strip(images: np.ndarray, columns: int) -> np.ndarray:
    """Joins images side by side on white, a thin gap between them."""
    count, height, width, _ = images.shape
    gap = _gap(width)
    coloured = np.broadcast_to(images, (count, height, width, 3))
    missing = ((0, columns - count), (0, 0), (0, gap), (0, 0))
    padded = np.pad(np.clip(coloured, 0.0, 1.0), missing, constant_values=1.0)
    joined = padded.transpose(1, 0, 2, 3).reshape(height, columns * (width + gap), 3)
    return joined[:, :-gap]
