"""Figures as bytes: the same inputs give the same file, and every figure says what it shows."""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.report.tables import attack_name, find_entry, largest_radii, ordered, per_cent, radius

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


_IMAGE_GRID_BAND = 8
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
    columns = min(count, _IMAGE_GRID_BAND)
    starts = range(0, count, _IMAGE_GRID_BAND)
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
            _draw_strip(
                axes, label, _image_grid_strip(images[start : start + _IMAGE_GRID_BAND], columns)
            )
        _draw_captions(band[-1], captions[start : start + _IMAGE_GRID_BAND], height, width)
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


def _image_grid_strip(images: np.ndarray, columns: int) -> np.ndarray:
    """Joins images side by side on white, a thin gap between them."""
    count, height, width, _ = images.shape
    gap = _gap(width)
    coloured = np.broadcast_to(images, (count, height, width, 3))
    missing = ((0, columns - count), (0, 0), (0, gap), (0, 0))
    padded = np.pad(np.clip(coloured, 0.0, 1.0), missing, constant_values=1.0)
    joined = padded.transpose(1, 0, 2, 3).reshape(height, columns * (width + gap), 3)
    return joined[:, :-gap]


_MARKERS = "os^DvP*X"
_DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 3)))
_WORST = "worst case"
_PANEL = (2.9, 2.5)


class Point(NamedTuple):
    """A share in [0, 1] with its interval at a place; the ends are None where none is known."""

    place: float
    share: float
    low: float | None = None
    high: float | None = None


def epsilon_curves(
    name: str, metrics: Mapping[str, Any], threat_models: Mapping[str, str]
) -> ReportFigure | None:
    """Draws the subject's accuracy against the radius, a panel per threat model.

    Args:
        name: Stem of the file names.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        threat_models: Names of the threat models in words, in the order of the panels.

    Returns:
        The figure, a line with its 95% Wilson band for each attack and for the worst case per
        image; None where nothing was attacked. Lines start without an attack, unless that was
        measured on other images.
    """
    panels = {
        title.capitalize(): _attack_lines(metrics, threat_model)
        for threat_model, title in threat_models.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    caption = (
        "Accuracy of the model under test against the radius ε of the ball, for each attack and "
        "for the worst case per image, with 95% Wilson bands."
    )
    figure = _panels(panels, "ε in 1/255", _radius_axes)
    return render_figure(figure, name, caption, f"{caption} {_curve_figures_spoken(panels, 'ε')}")


def _attack_lines(metrics: Mapping[str, Any], threat_model: str) -> dict[str, list[Point]]:
    key = {"defence": metrics["subject"], "threat_model": threat_model}
    clean = find_entry(metrics["clean"], defence=metrics["subject"])
    lines: dict[str, list[Point]] = {}
    for part in ("under_attack", "worst_case"):
        for entry in metrics[part]:
            if entry["epsilon"] is None or any(entry[name] != key[name] for name in key):
                continue
            label = attack_name(entry["attack"]) if part == "under_attack" else _WORST
            start = clean is not None and clean["examples"] == entry["examples"]
            points = lines.setdefault(label, [_point(0.0, clean)] if start else [])
            points.append(_point(entry["epsilon"], entry))
    return {label: sorted(points) for label, points in lines.items()}


def _point(place: float, entry: Mapping[str, Any]) -> Point:
    return Point(place, entry["accuracy"], entry["accuracy_low"], entry["accuracy_high"])


def ladder_curve(name: str, ladder: Sequence[Mapping[str, Any]]) -> ReportFigure | None:
    """Draws accuracy under PGD from no radius to one that allows everything.

    Args:
        name: Stem of the file names.
        ladder: What `sfm_tf.audit.probes.attack_strength.probe_ladder` returned.

    Returns:
        The figure; None where nothing was measured.
    """
    if not ladder:
        return None
    points = [_counted(entry["epsilon"], entry["correct"], entry["examples"]) for entry in ladder]
    caption = (
        f"White-box PGD with one random start on {ladder[0]['examples']:,} images, at radii from "
        "none to one at which every image may become grey: accuracy with its 95% Wilson band; the "
        "radius on a logarithmic scale."
    )
    panels = {"White box, PGD": {"PGD": points}}

    def set_up(axes: Axes) -> None:
        _share_axis(axes)
        _logarithmic(axes, [point.place for point in points])

    figure = _panels(panels, "ε in 1/255", set_up)
    return render_figure(figure, name, caption, f"{caption} {_curve_figures_spoken(panels, 'ε')}")


def _counted(place: float, count: int, examples: int) -> Point:
    return Point(place, count / examples, *wilson_interval(count, examples))


def loss_curves(
    name: str, curve: Sequence[Mapping[str, Any]], examples: int | None
) -> ReportFigure | None:
    """Draws loss and success of PGD against the number of its steps.

    Args:
        name: Stem of the file names.
        curve: What `sfm_tf.audit.probes.attack_strength.probe_curve` returned.
        examples: Number of images; None where it is not known, which leaves no band.

    Returns:
        The figure; None where nothing was measured.
    """
    if not curve:
        return None
    losses = {
        label: [Point(entry["steps"], entry[key]) for entry in curve]
        for label, key in (("median loss", "median_loss"), ("mean loss", "mean_loss"))
    }
    wrong = {"wrong images": [_wrong(entry, examples) for entry in curve]}
    caption = (
        "White-box PGD after ever more steps of the same ascent: cross-entropy on the attacked "
        "model, and the share of the images that the model under test is wrong on"
        f"{', with its 95% Wilson band' if examples else ''}; steps on a logarithmic scale."
    )
    figure = Figure(figsize=(2 * _PANEL[0], _PANEL[1] + 0.4), layout="constrained")
    for axes, title, lines in zip(
        figure.subplots(1, 2), ("Loss", "Success"), (losses, wrong), strict=True
    ):
        _draw_lines(axes, title, lines)
        axes.set_xlabel("steps", size=8)
        _logarithmic(axes, [entry["steps"] for entry in curve])
        axes.legend(frameon=False, fontsize=7)
    _share_axis(axes)
    axes.set_ylabel("")
    spoken = f"{_curve_figures_spoken({'Success': wrong}, 'steps')} Median loss: " + ", ".join(
        f"{point.share:.3g} at {point.place:g}" for point in losses["median loss"]
    )
    return render_figure(figure, name, caption, f"{caption} {spoken}.")


def _wrong(entry: Mapping[str, Any], examples: int | None) -> Point:
    if not examples:
        return Point(entry["steps"], entry["success"])
    return _counted(entry["steps"], round(entry["success"] * examples), examples)


def tuning_curves(name: str, tuning: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Draws accuracy against the weight of the sparsity loss (Yu et al. 2022, Figure 3).

    Args:
        name: Stem of the file names.
        tuning: As `sfm_tf.report.report_inputs.ReportInputs` has it, at least one entry.

    Returns:
        The figure, with 95% Wilson bands where the number of images is known.
    """
    lines = {
        key.replace("_", " "): sorted(
            _tuned(entry, key) for entry in tuning if entry.get(key) is not None
        )
        for key in ("clean", "black_box", "gray_box")
    }
    panels = {"Sparsity weight": {label: points for label, points in lines.items() if points}}
    weights = sorted(entry["sparsity_weight"] for entry in tuning)
    bands = any(point.low is not None for points in lines.values() for point in points)
    missing = [label for label, points in lines.items() if not points]
    caption = (
        "Accuracy against the weight w₁ of the sparsity loss, as Figure 3 of the paper"
        f"{', with 95% Wilson bands' if bands else ''}."
    )
    if missing:
        caption = f"{caption} Not measured: {', '.join(missing)}."

    def set_up(axes: Axes) -> None:
        _share_axis(axes)
        _logarithmic(axes, weights)

    figure = _panels(panels, "w₁", set_up)
    return render_figure(figure, name, caption, f"{caption} {_curve_figures_spoken(panels, 'w₁')}")


def _tuned(entry: Mapping[str, Any], key: str) -> Point:
    place, share, examples = entry["sparsity_weight"], entry[key], entry.get("examples")
    return _counted(place, round(share * examples), examples) if examples else Point(place, share)


def _panels(
    panels: Mapping[str, Mapping[str, Sequence[Point]]],
    place: str,
    set_up: Callable[[Axes], None],
) -> Figure:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width = 1.5 * _PANEL[0] if len(panels) == 1 else columns * _PANEL[0]
    figure = Figure(figsize=(width, rows * _PANEL[1] + 0.5), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    handles: dict[str, Any] = {}
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=False):
        handles |= _draw_lines(axes, title, lines, labels)
        axes.set_xlabel(place, size=8)
        set_up(axes)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    if len(handles) > 1:
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=min(3, len(handles)),
            frameon=False,
            fontsize=8,
            handlelength=3.0,
        )
    return figure


def _draw_lines(
    axes: Axes,
    title: str,
    lines: Mapping[str, Sequence[Point]],
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    order = list(lines) if labels is None else list(labels)
    handles = {}
    for label, points in lines.items():
        place = order.index(label)
        colour = "#222222" if label == _WORST else COLOURS[place % len(COLOURS)]
        places, shares, low, high = (
            np.array(values, float) for values in zip(*points, strict=True)
        )
        (handles[label],) = axes.plot(
            places,
            shares,
            label=label,
            color=colour,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=3.5,
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.3,
        )
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(title, size=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _radius_axes(axes: Axes) -> None:
    _share_axis(axes)
    # From no attack on, even where the lines start later.
    axes.set_xlim(left=-0.03 * axes.get_xlim()[1])


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(matplotlib.ticker.MultipleLocator(0.25))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("accuracy", size=8)


def _logarithmic(axes: Axes, places: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic, with a tick at each place; none may be negative."""
    positive = [place for place in places if place > 0.0]
    if positive:
        # Zero, which has no logarithm, stands one decade below the smallest place.
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        axes.set_xlim((-0.3 if 0.0 in places else 0.8) * min(positive), 1.2 * max(positive))
    axes.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _curve_figures_spoken(panels: Mapping[str, Mapping[str, Sequence[Point]]], place: str) -> str:
    return " ".join(
        f"{title}: "
        + "; ".join(
            f"{label} " + ", ".join(f"{p.share:.1%} at {place} {p.place:g}" for p in points)
            for label, points in lines.items()
        )
        + "."
        for title, lines in panels.items()
    )


_MOST_BARS = 40
"""Classes that have bars; of more those with the lowest worst case."""

_MOST_WORDS = 40
"""Classes up to which the heat map names each."""

_MOST_NUMBERS = 15
"""Classes up to which the heat map writes counts."""

_SPOKEN = 5
"""Confusions that are told to a reader who cannot see them."""

_PARTS = (("without an attack", "clean"), ("worst case", "worst_case"))


def class_chart(name: str, classes: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Draws the accuracies of each class without an attack and in the worst case.

    Args:
        name: Stem of the file names.
        classes: What `sfm_tf.evaluation.metrics.per_class` returned.

    Returns:
        The figure, bars with their 95% Wilson intervals; `not run` stands where a class has none.
    """
    shown = sorted(classes, key=_worst)[:_MOST_BARS] if len(classes) > _MOST_BARS else classes
    figure = Figure(figsize=(5.4, 0.34 * len(shown) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, key) in enumerate(_PARTS):
        _breakdown_figures_draw_bars(axes, place, label, [entry[key] for entry in shown])
    names = [plain_words(entry["class"]) for entry in shown]
    axes.set_yticks(range(len(shown)), names, size=8, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    caption = (
        "Accuracy of each class without an attack and in the worst case over all threat models and "
        "radii, with 95% Wilson intervals."
    )
    if len(shown) < len(classes):
        caption = f"{caption} Shown are the {len(shown)} classes with the lowest worst case."
    return render_figure(figure, name, caption, f"{caption} {_breakdown_figures_spoken(shown)}")


def _breakdown_figures_draw_bars(
    axes: Axes, place: int, label: str, entries: Sequence[Mapping[str, Any] | None]
) -> None:
    positions = np.arange(len(entries)) + 0.36 * (place - 0.5)
    shares = [0.0 if entry is None else entry["accuracy"] for entry in entries]
    axes.barh(positions, shares, 0.36, label=label, color=COLOURS[place])
    for position, entry in zip(positions, entries, strict=True):
        if entry is None:
            axes.text(0.01, position, "not run", ha="left", va="center", size=6)
            continue
        ends = np.array([[entry["accuracy_low"]], [entry["accuracy_high"]]])
        axes.errorbar(
            entry["accuracy"],
            position,
            xerr=np.abs(ends - entry["accuracy"]),
            color="#333333",
            capsize=1.5,
            linewidth=1,
        )


def _worst(entry: Mapping[str, Any]) -> float:
    return 2.0 if entry["worst_case"] is None else entry["worst_case"]["accuracy"]


def _breakdown_figures_spoken(classes: Sequence[Mapping[str, Any]]) -> str:
    lines = (
        f"{entry['class']}: "
        + ", ".join(
            f"{label} {'not run' if entry[key] is None else format(entry[key]['accuracy'], '.1%')}"
            for label, key in _PARTS
        )
        for entry in classes
    )
    return f"{'; '.join(lines)}."


def confusion_map(
    name: str,
    confusion: Mapping[str, Any],
    class_names: Sequence[str],
    threat_models: Mapping[str, str],
) -> ReportFigure:
    """Draws what the images of each class are taken for under the strongest attack.

    Args:
        name: Stem of the file names.
        confusion: What `sfm_tf.evaluation.metrics.confusion` returned, not None.
        class_names: Names of the classes, by their indices.
        threat_models: Names of the threat models in words.

    Returns:
        The figure: a row per true class, a column per predicted class; dark where a large share of
        the class is.
    """
    counts = np.array(confusion["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(5.4, 2.0 + 0.34 * len(counts))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    if len(counts) <= _MOST_WORDS:
        names = [plain_words(class_name) for class_name in class_names]
        axes.set_xticks(range(len(names)), names, rotation=90, size=7, parse_math=False)
        axes.set_yticks(range(len(names)), names, size=7, parse_math=False)
    if len(counts) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "#ffffff" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, count, ha="center", va="center", size=7, color=colour)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    attack = (
        f"{attack_name(confusion['attack'])} {confusion['epsilon']:g}/255, "
        f"{threat_models[confusion['threat_model']]}"
    )
    caption = (
        f"What the images of each class are taken for under the strongest attack, {attack}, which "
        f"turned {confusion['turned_wrong']:,} images wrong. Darker: a larger share of the class."
    )
    return render_figure(figure, name, caption, f"{caption} {_confusions(counts, class_names)}")


def _confusions(counts: np.ndarray, class_names: Sequence[str]) -> str:
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_SPOKEN]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    told = [
        f"{class_names[row]} for {class_names[column]} {wrong[row, column]} times"
        for row, column in pairs
        if wrong[row, column]
    ]
    return f"Most often mistaken: {', '.join(told)}." if told else "No image was mistaken."


_DETECTION_FIGURE_DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 3)))
"""With the colours, 30 lines that differ; five neighbours differ without colour, too."""

_BELOW = {"loc": "outside lower center", "ncols": 3}


def roc_figure(
    name: str, summary: Mapping[str, Any], threat_models: Mapping[str, str]
) -> ReportFigure | None:
    """Draws the receiver operating characteristics of a detector, a panel per threat model.

    Every attack has a line, at its largest radius: of its successful images, the share that a
    threshold flags, over the share of the clean images that it flags as well. A dot marks the
    detector's own threshold.

    Args:
        name: Stem of the file names.
        summary: What `sfm_tf.audit.detection.detection_summary` returned.
        threat_models: Names of the threat models in words, in the order of the panels.

    Returns:
        The figure; None where no attack had a success to be detected.
    """
    entries = [e for e in largest_radii(ordered(summary, threat_models)) if e["curve"] is not None]
    if not entries:
        return None
    panels = {
        title: [entry for entry in entries if entry["threat_model"] == threat_model]
        for threat_model, title in threat_models.items()
    }
    panels = {title.capitalize(): lines for title, lines in panels.items() if lines}
    caption = (
        "Detection of the successful images of each attack at its largest radius, over the clean "
        "test images flagged by mistake, for every threshold; dots: the threshold in use, which "
        f"flags {per_cent(summary['clean']['rate'])} of the clean images; grey diagonal: chance."
    )
    spoken = f"{caption} {_detection_figure_spoken(panels)}"
    return render_figure(_draw(panels, summary), name, caption, spoken)


def _draw(panels: Mapping[str, Sequence[Mapping[str, Any]]], summary: Mapping[str, Any]) -> Figure:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    # The legend of a single panel is beside it.
    width, height = (5.4, 3.4) if len(panels) == 1 else (5.8, 2.9 * rows + 0.6)
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = dict.fromkeys(_label(entry) for lines in panels.values() for entry in lines)
    places = {label: place for place, label in enumerate(labels)}
    drawn: dict[str, Any] = {}
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=False):
        _set_up(axes, title)
        for entry in lines:
            label = _label(entry)
            drawn[label] = _draw_line(axes, entry, places[label], summary["clean"]["rate"])
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    place = {"loc": "outside right center"} if len(panels) == 1 else _BELOW
    figure.legend(drawn.values(), drawn, frameon=False, fontsize=8, handlelength=3.0, **place)
    return figure


def _set_up(axes: Axes, title: str) -> None:
    axes.plot((0.0, 1.0), (0.0, 1.0), color="#bbbbbb", linewidth=1)
    axes.set_title(title, size=9)
    axes.set_xlim(0.0, 1.0)
    # A line along the top would lose half its width.
    axes.set_ylim(0.0, 1.02)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(matplotlib.ticker.MultipleLocator(0.25))
        axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("clean images flagged", size=8)
    axes.set_ylabel("successful attacks flagged", size=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, entry: Mapping[str, Any], place: int, clean_rate: float) -> Any:
    colour, curve = COLOURS[place % len(COLOURS)], entry["curve"]
    (line,) = axes.step(
        curve["false_positive_rates"],
        curve["true_positive_rates"],
        where="post",
        color=colour,
        linestyle=_DETECTION_FIGURE_DASHES[place % len(_DETECTION_FIGURE_DASHES)],
        linewidth=1.4,
    )
    axes.plot(
        [clean_rate],
        [entry["successful"]["rate"]],
        color=colour,
        marker="o",
        markersize=4,
        clip_on=False,
    )
    return line


def _label(entry: Mapping[str, Any]) -> str:
    return f"{attack_name(entry['attack'])} {radius(entry)}"


def _detection_figure_spoken(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return " ".join(
        f"{title}: "
        + ", ".join(
            f"{_label(entry)} {per_cent(entry['successful']['rate'])} flagged, area under the "
            f"curve {entry['auc']:.2f}"
            for entry in lines
        )
        + "."
        for title, lines in panels.items()
    )
