"""The charts of a report, in Vega-Lite (Satyanarayan et al. 2017).

One specification is drawn three times: in the page, where a reader can hover and filter, as SVG and
as PNG. The same inputs give the same specification and the same files.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from sfm_tf.audit.probes.measurements import AfterSteps, AtRadius
from sfm_tf.evaluation.metrics import Accuracy, Metrics, WorstCase
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.report.inputs import RadiusAccuracy
from sfm_tf.report.tables import (
    attack_name,
    defence_name,
    largest_radii,
    ordered,
    per_cent,
    radius,
)

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme, which colour-blind readers can tell apart."""

_DASHES = ((1, 0), (6, 2), (2, 2), (6, 2, 2, 2), (10, 3))
"""With the colours 30 lines that differ; five neighbours differ without colour, too."""

_WORST = "worst case"
_WIDTH, _PANEL_WIDTH, _HEIGHT = 560, 270, 240
_PNG_SCALE = 2.0

_CONFIG: Mapping[str, Any] = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#dfe3e8", "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 220},
    "legend": {"orient": "bottom", "columns": 3, "labelLimit": 220, "title": None},
    "header": {"labelFontSize": 12, "labelFontWeight": "bold", "title": None},
}


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure.

    Attributes:
        name: Stem of its file names.
        caption: What a reader sees below it.
        alternative_text: What a reader who cannot see it is told.
        chart: Its specification in Vega-Lite.
        is_interactive: Whether a page lets its reader hover and filter.
    """

    name: str
    caption: str
    alternative_text: str
    chart: Mapping[str, Any]
    is_interactive: bool = True

    def svg(self) -> str:
        """Returns the figure as an SVG file."""
        return vl_convert.vegalite_to_svg(self.chart)


def png(svg: str) -> bytes:
    """Returns a drawn figure as a PNG file, of two pixels for each of its own."""
    return vl_convert.svg_to_png(svg, scale=_PNG_SCALE)


@dataclasses.dataclass(frozen=True)
class Point:
    """One value of a chart with the ends of its 95% interval; None where nothing is known.

    Attributes:
        series: The line or colour that it belongs to.
        place: Where it stands on the other axis: a number or a name.
        value: The value, a share in [0, 1] unless the chart says otherwise.
        low: Lower end of the interval.
        high: Upper end.
        panel: Title of the panel that it stands in.
    """

    series: str
    place: float | str
    value: float | None
    low: float | None = None
    high: float | None = None
    panel: str = ""


def accuracy_point(
    series: str, place: float | str, entry: Accuracy | None, panel: str = ""
) -> Point:
    """Returns an accuracy as a point; without a value where nothing was measured."""
    if entry is None:
        return Point(series, place, None, panel=panel)
    return Point(
        series, place, entry.accuracy, entry.accuracy_low, entry.accuracy_high, panel=panel
    )


def _counted(series: str, place: float, count: int, examples: int, panel: str = "") -> Point:
    low, high = wilson_interval(count, examples)
    return Point(series, place, count / examples, low, high, panel)


def report_figure(
    name: str,
    caption: str,
    spoken: str,
    chart: alt.TopLevelMixin,
    *,
    is_interactive: bool = True,
) -> ReportFigure:
    """Returns a chart as a figure.

    Args:
        name: Stem of the file names.
        caption: What a reader sees below it.
        spoken: What a reader who cannot see it is told beside the caption.
        chart: The chart.
        is_interactive: Whether a page lets its reader hover and filter.
    """
    text = f"{caption} {spoken}".rstrip()
    specification = {**chart.to_dict(), "config": dict(_CONFIG), "description": text}
    return ReportFigure(name, caption, text, specification, is_interactive)


def spoken(points: Iterable[Point], place: str = "") -> str:
    """Returns the values of a chart in words, a sentence for each line.

    Args:
        points: The points, those of a line in their order.
        place: What stands before a number on the other axis, such as `at ε`.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for point in points:
        where = point.place if isinstance(point.place, str) else f"{place} {point.place:g}"
        value = "not run" if point.value is None else per_cent(point.value)
        line = lines.setdefault((point.panel, point.series), [])
        line.append(f"{where} {value}" if isinstance(point.place, str) else f"{value} {where}")
    return " ".join(
        f"{', '.join(filter(None, key))}: {', '.join(values)}." for key, values in lines.items()
    )


def _rows(points: Iterable[Point]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(point), "order": place} for place, point in enumerate(points)]


def _series(points: Iterable[Point]) -> dict[str, Any]:
    """Returns the channels that tell series apart, and the filter that their legend is."""
    names = list(dict.fromkeys(point.series for point in points))
    colours = [
        "#222222" if name == _WORST else COLOURS[place % len(COLOURS)]
        for place, name in enumerate(names)
    ]
    dashes = [list(_DASHES[place % len(_DASHES)]) for place in range(len(names))]
    legend = alt.Legend(symbolOpacity=1.0) if len(names) > 1 else None
    return {
        "color": alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        "strokeDash": alt.StrokeDash(
            "series:N", scale=alt.Scale(domain=names, range=dashes), legend=legend
        ),
    }


def _share_axis(channel: Any, title: str = "accuracy", **options: Any) -> Any:
    scale = alt.Scale(domain=[0.0, 1.0])
    return channel("value:Q", title=title, scale=scale, axis=alt.Axis(format="%"), **options)


def _tooltip(place: str, value: str, form: str = ".1%") -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title=" "),
        alt.Tooltip("place:N", title=place),
        alt.Tooltip("value:Q", title=value, format=form),
        alt.Tooltip("low:Q", title="95% from", format=form),
        alt.Tooltip("high:Q", title="to", format=form),
    ]


def _chosen() -> alt.Parameter:
    """Returns a filter: a click on a name of the legend leaves that series alone."""
    return alt.selection_point(name="chosen", fields=["series"], bind="legend")


def line_chart(
    points: Sequence[Point], x: alt.X, y: alt.Y, *, form: str = ".1%"
) -> alt.TopLevelMixin:
    """Returns lines with bands of their intervals, a panel for each title.

    Args:
        points: The points; those of a line are joined in the order of their places.
        x: The axis of the places.
        y: The axis of the values.
        form: How tooltips write a value, as d3-format does.
    """
    chosen, channels = _chosen(), _series(points)
    base = alt.Chart().encode(
        x=x,
        y=y,
        color=channels["color"],
        tooltip=_tooltip(x.to_dict().get("title", ""), y.to_dict().get("title", ""), form),
    )
    bands = base.mark_area().encode(
        y=alt.Y("low:Q", title=y.to_dict().get("title", "")),
        y2="high:Q",
        opacity=alt.condition(chosen, alt.value(0.15), alt.value(0.03)),
    )
    lines = base.mark_line(point=alt.OverlayMarkDef(filled=True, size=36)).encode(
        strokeDash=channels["strokeDash"],
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
    )
    layers = alt.layer(bands, lines) if any(p.low is not None for p in points) else lines
    return _panels(layers, _rows(points), chosen)


def _panels(layers: Any, rows: list[dict[str, Any]], chosen: alt.Parameter) -> alt.TopLevelMixin:
    titles, data = list(dict.fromkeys(row["panel"] for row in rows)), alt.Data(values=rows)
    if len(titles) == 1:
        chart = layers.properties(data=data, width=_WIDTH, height=_HEIGHT, title=titles[0])
        return chart.add_params(chosen)
    facet = alt.Facet("panel:N", sort=titles, title=None)
    inner = layers.properties(width=_PANEL_WIDTH, height=0.75 * _HEIGHT)
    return inner.facet(facet=facet, data=data, columns=2).add_params(chosen)


_RADIUS = "radius ε in 1/255"


def _accuracy_lines(
    name: str,
    caption: str,
    points: Sequence[Point],
    title: str,
    symbol: str,
    *,
    value: str = "accuracy",
    is_logarithmic: bool = False,
) -> ReportFigure:
    """Returns a figure of shares along a numeric axis of this title, spoken of by its symbol."""
    axis = _number_axis(title, [point.place for point in points], is_logarithmic=is_logarithmic)
    chart = line_chart(points, axis, _share_axis(alt.Y, value))
    return report_figure(name, caption, spoken(points, f"at {symbol}"), chart)


def _number_axis(title: str, places: Iterable[float], *, is_logarithmic: bool) -> alt.X:
    """Returns a horizontal axis with a tick at each place, a logarithmic one with zero too."""
    values = sorted(set(places))
    axis = alt.Axis(values=values, format=".6~g", labelOverlap=True)
    scale = alt.Scale(zero=True, nice=False)
    positive = [value for value in values if value > 0.0]
    if is_logarithmic and positive:
        scale = alt.Scale(type="symlog", constant=min(positive), nice=False)
    return alt.X("place:Q", title=title, axis=axis, scale=scale)


def decision_chart(name: str, curve: Sequence[RadiusAccuracy]) -> ReportFigure:
    """Draws the accuracy of every defence after all attacks of at most a radius.

    Args:
        name: Stem of the file names.
        curve: What `sfm_tf.report.collection.accuracy_by_radius` returned, at least one entry.
    """
    points = [accuracy_point(defence_name(e.defence), e.epsilon, e) for e in curve]
    caption = (
        "Accuracy against the radius ε of the attacks, with 95% Wilson intervals. At 0 no image is "
        "attacked. At each radius an image counts as right only if the model is right on it after "
        "every attack of every threat model up to that radius."
    )
    return _accuracy_lines(name, caption, points, _RADIUS, "ε")


def accuracy_chart(name: str, title: str, points: Sequence[Point]) -> ReportFigure:
    """Draws accuracies by group, such as the attacks, with their 95% Wilson intervals.

    Args:
        name: Stem of the file names.
        title: What the accuracies are of.
        points: A point for each defence in each group; `not run` stands where it has no value.
    """
    caption = f"{title}: accuracy, with 95% Wilson intervals."
    return report_figure(name, caption, spoken(points), _interval_chart(points))


def _interval_chart(points: Sequence[Point]) -> alt.TopLevelMixin:
    """Returns a row for each group and in it a dot with an interval for each series."""
    groups = list(dict.fromkeys(point.place for point in points))
    names = list(dict.fromkeys(point.series for point in points))
    chosen, channels = _chosen(), _series(points)
    base = alt.Chart(alt.Data(values=_rows(points))).encode(
        y=alt.Y("place:N", sort=groups, title=None, axis=alt.Axis(grid=True, tickBand="extent")),
        yOffset=alt.YOffset("series:N", sort=names),
        color=channels["color"],
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
        tooltip=_tooltip("of", "accuracy"),
    )
    intervals = base.mark_rule(strokeWidth=2).encode(x=_share_axis(alt.X), x2="high:Q")
    intervals.encoding.x = alt.X("low:Q", title="accuracy")
    dots = base.mark_point(filled=True, size=50).encode(
        x=_share_axis(alt.X), shape=alt.Shape("series:N", sort=names, legend=None)
    )
    missing = (
        base.mark_text(align="left", fontSize=9)
        .encode(x=alt.value(2), text=alt.value("not run"))
        .transform_filter("datum.value === null")
    )
    step = max(20, 11 * len(names) + 6)
    chart = alt.layer(intervals, dots, missing).properties(width=_WIDTH, height=step * len(groups))
    return chart.add_params(chosen)


def epsilon_curves(
    name: str, metrics: Metrics, threat_models: Mapping[str, str]
) -> ReportFigure | None:
    """Draws the subject's accuracy against the radius, a panel per threat model.

    Args:
        name: Stem of the file names.
        metrics: Figures of an evaluation.
        threat_models: Names of the threat models in words, in the order of the panels.

    Returns:
        The figure, a line with its 95% Wilson band for each attack and for the worst case per
        image; None where nothing was attacked. Lines start without an attack, unless that was
        measured on other images.
    """
    points = [
        point
        for threat_model, title in threat_models.items()
        for point in _attack_points(metrics, threat_model, title.capitalize())
    ]
    if not points:
        return None
    caption = (
        "Accuracy of the evaluated model against the radius ε, for each attack and for the worst "
        "case per image, with 95% Wilson bands."
    )
    return _accuracy_lines(name, caption, points, _RADIUS, "ε")


def _attack_points(metrics: Metrics, threat_model: str, panel: str) -> list[Point]:
    clean = metrics.clean_accuracy(metrics.subject)
    lines: dict[str, list[Point]] = {}
    for entry in (*metrics.under_attack, *metrics.worst_case):
        radius = entry.epsilon
        if radius is None or (entry.defence, entry.threat_model) != (metrics.subject, threat_model):
            continue
        label = _WORST if isinstance(entry, WorstCase) else attack_name(entry.attack)
        same_images = clean is not None and clean.examples == entry.examples
        start = [accuracy_point(label, 0.0, clean, panel)] if same_images else []
        lines.setdefault(label, start).append(accuracy_point(label, radius, entry, panel))
    return [p for line in lines.values() for p in sorted(line, key=lambda each: each.place)]


def ladder_curve(name: str, ladder: Sequence[AtRadius]) -> ReportFigure | None:
    """Draws accuracy under PGD from no radius to one that allows everything.

    Args:
        name: Stem of the file names.
        ladder: What `sfm_tf.audit.probes.attack_strength.probe_ladder` returned.

    Returns:
        The figure; None where nothing was measured.
    """
    if not ladder:
        return None
    points = [_counted("PGD", e.epsilon, e.correct, e.examples) for e in ladder]
    caption = (
        f"White-box PGD with one random start on {ladder[0].examples:,} images, at radii from "
        "none to one at which every image may become grey: accuracy with its 95% Wilson band; the "
        "radius on a logarithmic scale."
    )
    return _accuracy_lines(name, caption, points, _RADIUS, "ε", is_logarithmic=True)


def loss_curve(name: str, curve: Sequence[AfterSteps]) -> ReportFigure | None:
    """Draws the loss of PGD against the number of its steps.

    Args:
        name: Stem of the file names.
        curve: What `sfm_tf.audit.probes.attack_strength.probe_curve` returned.

    Returns:
        The figure; None where nothing was measured.
    """
    if not curve:
        return None
    points = [
        Point(f"{kind} loss", entry.steps, getattr(entry, f"{kind}_loss"))
        for kind in ("median", "mean")
        for entry in curve
    ]
    caption = (
        "Cross-entropy on the attacked model after more and more steps of white-box PGD; steps on "
        "a logarithmic scale."
    )
    axis = _number_axis("steps", [entry.steps for entry in curve], is_logarithmic=True)
    chart = line_chart(points, axis, alt.Y("value:Q", title="loss"), form=".3~g")
    median = ", ".join(f"{e.median_loss:.3g} at {e.steps:g}" for e in curve)
    return report_figure(name, caption, f"Median loss: {median}.", chart)


def success_curve(name: str, curve: Sequence[AfterSteps], examples: int) -> ReportFigure | None:
    """Draws the success of PGD against the number of its steps.

    Args:
        name: Stem of the file names.
        curve: What `sfm_tf.audit.probes.attack_strength.probe_curve` returned.
        examples: Number of images.

    Returns:
        The figure; None where nothing was measured.
    """
    if not curve:
        return None
    points = [
        _counted("wrong images", e.steps, round(e.success * examples), examples) for e in curve
    ]
    caption = (
        "Share of the images that the evaluated model gets wrong after more and more steps of "
        "white-box PGD, with its 95% Wilson band; steps on a logarithmic scale."
    )
    look = {"value": "wrong images", "is_logarithmic": True}
    return _accuracy_lines(name, caption, points, "steps", "steps", **look)


def tuning_curves(name: str, tuning: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Draws accuracy against the weight of the sparsity loss (Yu et al. 2022, Figure 3).

    Args:
        name: Stem of the file names.
        tuning: As `sfm_tf.report.inputs.ReportInputs` has it, at least one entry.

    Returns:
        The figure, with 95% Wilson bands where the number of images is known.
    """
    trials = sorted(tuning, key=lambda trial: trial["sparsity_weight"])
    keys = ("clean", "black_box", "gray_box")
    points = [_tuned(trial, key) for key in keys for trial in trials if trial.get(key) is not None]
    missing = [key.replace("_", " ") for key in keys if all(t.get(key) is None for t in trials)]
    bands = any(point.low is not None for point in points)
    caption = (
        "Accuracy against the weight w₁ of the sparsity loss, as Figure 3 of the paper"
        f"{', with 95% Wilson bands' if bands else ''}."
    )
    if missing:
        caption = f"{caption} Not measured: {', '.join(missing)}."
    return _accuracy_lines(name, caption, points, "w₁", "w₁", is_logarithmic=True)


def _tuned(trial: Mapping[str, Any], key: str) -> Point:
    label, place, examples = key.replace("_", " "), trial["sparsity_weight"], trial.get("examples")
    if not examples:
        return Point(label, place, trial[key])
    return _counted(label, place, round(trial[key] * examples), examples)


def training_curves(name: str, curves: Mapping[str, Sequence[float]]) -> ReportFigure:
    """Draws how the training went, one panel per quantity.

    Args:
        name: Stem of the file names.
        curves: Values per epoch, by name; a NaN leaves a gap.
    """
    points = [
        Point(label, epoch, None if np.isnan(value) else value, panel=label)
        for label, values in curves.items()
        for epoch, value in enumerate(values, start=1)
    ]
    epochs = max(map(len, curves.values()))
    ticks = list(range(1, epochs + 1, -(-epochs // 8)))
    axis = alt.X("place:Q", title="epoch", axis=alt.Axis(values=ticks, format="d"))
    line = (
        alt.Chart()
        .mark_line(point=True, color=COLOURS[0])
        .encode(
            x=axis,
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            tooltip=[alt.Tooltip("place:Q", title="epoch"), alt.Tooltip("value:Q", format=".4~g")],
        )
        .properties(width=_PANEL_WIDTH, height=110)
    )
    facet = alt.Facet("panel:N", sort=list(curves), title=None)
    chart = line.facet(facet=facet, data=alt.Data(values=_rows(points)), columns=2).resolve_scale(
        y="independent"
    )
    ends = ", ".join(f"{label} {values[-1]:.3g}" for label, values in curves.items())
    caption = "Training: values at the end of each epoch."
    return report_figure(name, caption, f"Last values: {ends}.", chart)


_MOST_CLASSES = 40
"""Classes that have rows; of more those with the lowest worst case."""


def class_chart(name: str, classes: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Draws the accuracies of each class without an attack and in the worst case.

    Args:
        name: Stem of the file names.
        classes: What `sfm_tf.evaluation.metrics.per_class` returned.

    Returns:
        The figure with 95% Wilson intervals; `not run` stands where a class has none.
    """
    shown = (
        sorted(classes, key=_worst_accuracy)[:_MOST_CLASSES]
        if len(classes) > _MOST_CLASSES
        else classes
    )
    points = [
        accuracy_point(label, entry["class"], entry[key] and Accuracy(**entry[key]))
        for label, key in (("without an attack", "clean"), ("in the worst case", "worst_case"))
        for entry in shown
    ]
    caption = (
        "Accuracy of each class without an attack and in the worst case over all threat models and "
        "radii, with 95% Wilson intervals."
    )
    if len(shown) < len(classes):
        caption = f"{caption} Shown are the {len(shown)} classes with the lowest worst case."
    return report_figure(name, caption, spoken(points), _interval_chart(points))


def _worst_accuracy(entry: Mapping[str, Any]) -> float:
    return 2.0 if entry["worst_case"] is None else entry["worst_case"]["accuracy"]


_MOST_NAMED, _MOST_COUNTED, _MOST_SPOKEN = 40, 15, 5
"""Classes up to which the heat map names them and counts images, and confusions put into words."""


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
    cells = [
        {
            "true": class_names[row],
            "predicted": class_names[column],
            "count": int(count),
            "share": float(shares[row, column]),
        }
        for (row, column), count in np.ndenumerate(counts)
    ]
    attack = (
        f"{attack_name(confusion['attack'])} {confusion['epsilon']:g}/255, "
        f"{threat_models[confusion['threat_model']]}"
    )
    caption = (
        f"Predicted classes under the strongest attack, {attack}, which broke "
        f"{confusion['turned_wrong']:,} images. Darker: a larger share of the class."
    )
    return report_figure(
        name, caption, _confusions(counts, class_names), _heat_map(cells, list(class_names))
    )


def _heat_map(cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> alt.TopLevelMixin:
    axis = alt.Axis() if len(names) <= _MOST_NAMED else None
    base = alt.Chart(alt.Data(values=list(cells))).encode(
        x=alt.X("predicted:N", sort=names, title="predicted class", axis=axis),
        y=alt.Y("true:N", sort=names, title="true class", axis=axis),
        tooltip=["true:N", "predicted:N", "count:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    scale = alt.Scale(domain=[0.0, 1.0], scheme="blues")
    chart = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=None))
    if len(names) <= _MOST_COUNTED:
        white = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("#222222"))
        chart += base.mark_text(fontSize=10).encode(text="count:Q", color=white)
    side = min(420, 30 * len(names))
    return chart.properties(width=side, height=side)


def _confusions(counts: np.ndarray, class_names: Sequence[str]) -> str:
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_SPOKEN]
    told = [
        f"{class_names[row]} for {class_names[column]} {wrong[row, column]} times"
        for row, column in (np.unravel_index(place, wrong.shape) for place in order)
        if wrong[row, column]
    ]
    return f"Most often mistaken: {', '.join(told)}." if told else "No image was mistaken."


def roc_chart(
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
    largest = largest_radii(ordered(summary, threat_models))
    entries = [entry for entry in largest if entry["curve"] is not None]
    if not entries:
        return None
    flagged = summary["clean"]["rate"]
    lines, dots = [], []
    for entry in entries:
        panel = threat_models[entry["threat_model"]].capitalize()
        series, curve = f"{attack_name(entry['attack'])} {radius(entry)}", entry["curve"]
        rates = zip(curve["false_positive_rates"], curve["true_positive_rates"], strict=True)
        lines += [Point(series, clean, rate, panel=panel) for clean, rate in rates]
        dots.append((Point(series, flagged, entry["successful"]["rate"], panel=panel), entry))
    caption = (
        "Share of the successful images of each attack at its largest radius that the detector "
        "flags, against the share of clean images flagged by mistake, for every threshold. Dots: "
        f"the threshold in use, which flags {per_cent(flagged)} of the clean images."
    )
    told = " ".join(
        f"{dot.panel}, {dot.series}: {per_cent(dot.value)} flagged, area under the curve "
        f"{entry['auc']:.2f}."
        for dot, entry in dots
    )
    return report_figure(name, caption, told, _roc_lines(lines, [dot for dot, _ in dots]))


def _roc_lines(lines: Sequence[Point], dots: Sequence[Point]) -> alt.TopLevelMixin:
    chosen, channels = _chosen(), _series(lines)
    share = {"scale": alt.Scale(domain=[0.0, 1.0]), "axis": alt.Axis(format="%")}
    base = alt.Chart().encode(
        x=alt.X("place:Q", title="clean images flagged", **share),
        y=alt.Y("value:Q", title="successful attacks flagged", **share),
        color=channels["color"],
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
        tooltip=[alt.Tooltip(f"{name}:{kind}", format=form) for name, kind, form in _ROC_TOOLTIP],
    )
    curves = base.mark_line(interpolate="step-after").encode(
        order="order:Q", strokeDash=channels["strokeDash"]
    )
    rows = [{**row, "is_dot": False} for row in _rows(lines)]
    rows += [{**row, "is_dot": True} for row in _rows(dots)]
    layers = alt.layer(
        curves.transform_filter("!datum.is_dot"),
        base.mark_point(filled=True, size=60).transform_filter("datum.is_dot"),
    )
    return _panels(layers, rows, chosen)


_ROC_TOOLTIP = (("series", "N", ""), ("place", "Q", ".1%"), ("value", "Q", ".1%"))
