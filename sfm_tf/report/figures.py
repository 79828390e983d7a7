"""Figures as bytes: the same inputs give the same file, and every figure says what it shows."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BAND = 8
"""Images side by side; more of them continue below."""

_NARROWEST, _GROUP, _MARGIN = 5.4, 0.6, 0.8
"""Inches: of the narrowest chart, of each group of bars, and of what is beside them."""

_CHARACTER = 0.08
"""Inches of a capital of 8 points."""

_LEGEND_KEY, _LEGEND_CHARACTER = 0.6, 0.09
"""Inches of what is beside a name in the legend, and of a character of it."""

_HATCHES = ("", "////", "xxxx")
"""What tells bars apart whose colours are the same."""

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme, which colour-blind readers can tell apart."""


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A drawn figure.

    Attributes:
        name: Stem of its file names.
        caption: What a reader sees below it.
        alternative_text: What a reader who cannot see it is told.
        png: The figure as PNG file.
        svg: The figure as SVG file.
    """

    name: str
    caption: str
    alternative_text: str
    png: bytes
    svg: bytes


@dataclasses.dataclass(frozen=True)
class Bar:
    """One accuracy with the ends of its interval, all in [0, 1]."""

    accuracy: float
    low: float
    high: float


def accuracy_chart(
    name: str, title: str, groups: Sequence[str], bars: Mapping[str, Sequence[Bar | None]]
) -> ReportFigure:
    """Draws accuracies as groups of bars with their 95% Wilson intervals.

    Args:
        name: Stem of the file names.
        title: What the accuracies are of.
        groups: Labels below the groups, such as the attacks; they may have several lines.
        bars: For each defence, one bar per group; None where nothing was measured.

    Returns:
        The figure; a cell that was not run has the words "not run" in its place.
    """
    caption = f"{title}: accuracy, with 95% Wilson intervals."
    figure = draw_accuracies(groups, bars)
    return render_figure(figure, name, caption, f"{caption} {_spoken(groups, bars)}")


def draw_accuracies(groups: Sequence[str], bars: Mapping[str, Sequence[Bar | None]]) -> Figure:
    """Returns groups of bars on a figure as wide as they need; arguments as `accuracy_chart`'s."""
    inches = max(_NARROWEST, _GROUP * len(groups) + _MARGIN)
    figure = Figure(figsize=(inches, 3.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    for place, (defence, values) in enumerate(bars.items()):
        positions = np.arange(len(groups)) + (place - (len(bars) - 1) / 2) * width
        hatch = _HATCHES[place // len(COLOURS) % len(_HATCHES)]
        look = {"color": COLOURS[place % len(COLOURS)], "hatch": hatch, "edgecolor": "white"}
        _draw_bars(axes, positions, values, width, {"label": defence, **look})
    _label_groups(axes, groups, (inches - _MARGIN) / len(groups))
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_ylabel("accuracy")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    columns = max(1, int(inches / (_LEGEND_KEY + _LEGEND_CHARACTER * max(map(len, bars)))))
    figure.legend(loc="outside upper center", ncols=min(len(bars), columns), frameon=False)
    return figure


def _label_groups(axes: Axes, groups: Sequence[str], inches: float) -> None:
    """Writes what each group is below it, slanted where a line is wider than the group."""
    longest = max(len(line) for group in groups for line in group.splitlines())
    if longest * _CHARACTER <= inches:
        axes.set_xticks(range(len(groups)), groups, size=8)
        return
    labels = [" ".join(group.split()) for group in groups]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(groups)), labels, size=8, **slanted)


def _draw_bars(
    axes: Axes,
    positions: np.ndarray,
    bars: Sequence[Bar | None],
    width: float,
    look: Mapping[str, str],
) -> None:
    heights = [0.0 if bar is None else bar.accuracy for bar in bars]
    axes.bar(positions, heights, width, linewidth=0, **look)
    cap = min(2.0, 20.0 * width)  # Caps of neighbours would make one line of them.
    for position, bar in zip(positions, bars, strict=True):
        if bar is None:
            axes.text(position, 0.02, "not run", rotation=90, ha="center", va="bottom", size=7)
            continue
        errors = [[bar.accuracy - bar.low], [bar.high - bar.accuracy]]
        axes.errorbar(position, bar.accuracy, errors, color="#333333", capsize=cap, linewidth=1)


def _spoken(groups: Sequence[str], bars: Mapping[str, Sequence[Bar | None]]) -> str:
    return " ".join(
        f"{defence}: "
        + ", ".join(
            f"{' '.join(group.split())} {'not run' if bar is None else f'{bar.accuracy:.1%}'}"
            for group, bar in zip(groups, values, strict=True)
        )
        + "."
        for defence, values in bars.items()
    )


def defence_gallery(
    name: str, images: np.ndarray, masks: np.ndarray, masked: np.ndarray, defended: np.ndarray
) -> ReportFigure:
    """Draws what the defence does to images (Yu et al. 2022, section 6.6, Figure 4).

    Args:
        name: Stem of the file names.
        images: Inputs x, float32 in [0, 1], shape `(count, height, width, 1 or 3)`.
        masks: G(x), shape `(count, height, width, 1)`.
        masked: G(x) * x, of the images' shape.
        defended: T(G(x) * x), of the images' shape.

    Returns:
        The figure, one column per image.
    """
    rows = {"input": images, "mask": masks, "masked": masked, "defended": defended}
    caption = (
        "What the defence does to test images: input x, mask G(x) with white for kept, masked "
        "image G(x)·x, and defended image T(G(x)·x), which the classifier sees."
    )
    alternative_text = (
        f"{len(images)} test images in columns; from top to bottom the input, its mask, the masked "
        f"image and the defended image. The masks' mean is {float(np.mean(masks)):.2f}."
    )
    return render_figure(_gallery(rows), name, caption, alternative_text)


def perturbation_gallery(
    name: str, attack: str, epsilon: float, images: np.ndarray, adversarial_images: np.ndarray
) -> ReportFigure:
    """Draws clean images, adversarial images and the perturbation between them, magnified.

    Args:
        name: Stem of the file names.
        attack: What made the adversarial images, in words.
        epsilon: Radius of the L-infinity ball in 1/255.
        images: Float32 in [0, 1], shape `(count, height, width, 1 or 3)`.
        adversarial_images: Of the same shape.

    Returns:
        The figure, one column per image.
    """
    scale = 0.5 * 255.0 / epsilon
    perturbations = adversarial_images - images
    rows = {
        "clean": images,
        "adversarial": adversarial_images,
        f"perturbation\n× {scale:.1f}": 0.5 + scale * perturbations,
    }
    caption = (
        f"{attack}, ε = {epsilon:g}/255: clean image, adversarial image, and their difference "
        f"multiplied by {scale:.1f} around mid-grey, so that ±ε is white or black."
    )
    largest = float(np.max(np.abs(perturbations))) * 255.0
    alternative_text = (
        f"{len(images)} test images in columns; from top to bottom the clean image, the "
        f"adversarial image and the magnified perturbation, at most {largest:.1f}/255 in size."
    )
    return render_figure(_gallery(rows), name, caption, alternative_text)


def _gallery(rows: Mapping[str, np.ndarray]) -> Figure:
    count, height, width = next(iter(rows.values())).shape[:3]
    columns = min(count, _BAND)
    starts = range(0, count, _BAND)
    figure = Figure(
        figsize=(0.6 * columns + 1.2, 0.6 * height / width * len(rows) * len(starts)),
        layout="constrained",
    )
    all_axes = figure.subplots(len(rows) * len(starts), 1, squeeze=False)[:, 0]
    labelled = [(label, images[s : s + _BAND]) for s in starts for label, images in rows.items()]
    for axes, (label, images) in zip(all_axes, labelled, strict=True):
        axes.imshow(_strip(images, columns), interpolation="nearest")
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


def _strip(images: np.ndarray, columns: int) -> np.ndarray:
    """Joins images side by side on white, a thin gap between them."""
    _, height, width, _ = images.shape
    gap = max(1, width // 16)
    strip = np.ones((height, columns * (width + gap) - gap, 3), np.float32)
    for place, image in enumerate(images):
        strip[:, place * (width + gap) : place * (width + gap) + width] = image
    return np.clip(strip, 0.0, 1.0)


def training_curves(name: str, curves: Mapping[str, Sequence[float]]) -> ReportFigure:
    """Draws how the training went, one panel per quantity.

    Args:
        name: Stem of the file names.
        curves: Values per epoch, by name; a NaN leaves a gap.

    Returns:
        The figure.
    """
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5.4, 1.8 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (label, values) in zip(all_axes, curves.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[0], marker=".")
        axes.set_title(label, size=9)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in all_axes[len(curves) :]:
        axes.set_visible(False)
    caption = "Training: values at the end of each epoch."
    ends = ", ".join(f"{label} {values[-1]:.3g}" for label, values in curves.items())
    return render_figure(figure, name, caption, f"Curves over the epochs; last values: {ends}.")


def render_figure(figure: Figure, name: str, caption: str, alternative_text: str) -> ReportFigure:
    """Returns a drawn figure as PNG and SVG; equal figures give equal files."""
    # The date and the program would make two equal figures two different files, as would the
    # random identifiers of SVG elements; Matplotlib takes their salt from its settings only.
    undated = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    files = {kind: io.BytesIO() for kind in undated}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for kind, file in files.items():
            figure.savefig(file, format=kind, dpi=200, bbox_inches="tight", metadata=undated[kind])
    png, svg = (file.getvalue() for file in files.values())
    return ReportFigure(name, caption, alternative_text, png=png, svg=svg)
