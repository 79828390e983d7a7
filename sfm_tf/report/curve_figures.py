"""Figures of how accuracy, loss and success move: with the radius, the steps, a weight."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.report.figures import COLOURS, ReportFigure, render_figure
from sfm_tf.report.tables import attack_name, find_entry

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
    return render_figure(figure, name, caption, f"{caption} {_spoken(panels, 'ε')}")


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
        ladder: What `sfm_tf.evaluation.probes.attack_strength.probe_ladder` returned.

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
    return render_figure(figure, name, caption, f"{caption} {_spoken(panels, 'ε')}")


def _counted(place: float, count: int, examples: int) -> Point:
    return Point(place, count / examples, *wilson_interval(count, examples))


def loss_curves(
    name: str, curve: Sequence[Mapping[str, Any]], examples: int | None
) -> ReportFigure | None:
    """Draws loss and success of PGD against the number of its steps.

    Args:
        name: Stem of the file names.
        curve: What `sfm_tf.evaluation.probes.attack_strength.probe_curve` returned.
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
    spoken = f"{_spoken({'Success': wrong}, 'steps')} Median loss: " + ", ".join(
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
    return render_figure(figure, name, caption, f"{caption} {_spoken(panels, 'w₁')}")


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


def _spoken(panels: Mapping[str, Mapping[str, Sequence[Point]]], place: str) -> str:
    return " ".join(
        f"{title}: "
        + "; ".join(
            f"{label} " + ", ".join(f"{p.share:.1%} at {place} {p.place:g}" for p in points)
            for label, points in lines.items()
        )
        + "."
        for title, lines in panels.items()
    )
