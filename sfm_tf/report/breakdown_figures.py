"""Figures of what becomes of each class: accuracies, and what its images are taken for."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfm_tf.report.figures import COLOURS, ReportFigure, render_figure
from sfm_tf.report.image_grid import plain_words
from sfm_tf.report.tables import attack_name

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
        classes: What `sfm_tf.evaluation.breakdown.per_class` returned.

    Returns:
        The figure, bars with their 95% Wilson intervals; `not run` stands where a class has none.
    """
    shown = sorted(classes, key=_worst)[:_MOST_BARS] if len(classes) > _MOST_BARS else classes
    figure = Figure(figsize=(5.4, 0.34 * len(shown) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, key) in enumerate(_PARTS):
        _draw_bars(axes, place, label, [entry[key] for entry in shown])
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
    return render_figure(figure, name, caption, f"{caption} {_spoken(shown)}")


def _draw_bars(
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


def _spoken(classes: Sequence[Mapping[str, Any]]) -> str:
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
        confusion: What `sfm_tf.evaluation.breakdown.confusion` returned, not None.
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
