"""The figure of how well a detector tells adversarial images from clean ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfm_tf.report.detection_tables import largest_radii, ordered, radius
from sfm_tf.report.figures import COLOURS, ReportFigure, render_figure
from sfm_tf.report.tables import attack_name, per_cent

_DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 3)))
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
        summary: What `sfm_tf.evaluation.detection.detection_summary` returned.
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
    return render_figure(_draw(panels, summary), name, caption, f"{caption} {_spoken(panels)}")


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
        linestyle=_DASHES[place % len(_DASHES)],
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


def _spoken(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
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
