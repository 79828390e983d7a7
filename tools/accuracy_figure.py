"""Draws the accuracies of a stored run against the radius, as README.md and RESULTS.md show them.

python -m tools.accuracy_figure results/digits/metrics.json docs/accuracy.svg
"""

import argparse
import pathlib

import altair as alt

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.report.charts import (
    Point,
    ReportFigure,
    accuracy_point,
    line_chart,
    report_figure,
    spoken,
)

THREAT_MODELS = (
    ThreatModel.BLACK_BOX,
    ThreatModel.GRAY_BOX,
    ThreatModel.WHITE_BOX,
    ThreatModel.ADAPTIVE,
)


def accuracy_points(metrics: Metrics) -> list[Point]:
    """Returns the accuracy under the worst attack per image at each radius, clean images at 0."""
    points = []
    for threat_model in THREAT_MODELS:
        for clean in metrics.clean:
            attacked = [
                entry
                for entry in metrics.worst_case
                if (entry.defence, entry.threat_model) == (clean.defence, threat_model.value)
                and entry.epsilon is not None
            ]
            if attacked:
                line = [(0.0, clean), *((entry.epsilon, entry) for entry in attacked)]
                title, panel = DEFENCES[clean.defence].title, threat_model.attacker.title
                points += [accuracy_point(title, place, entry, panel) for place, entry in line]
    return points


def accuracy_figure(metrics: Metrics) -> ReportFigure:
    """Returns the figure: a panel per threat model, a line with its 95% band per defence."""
    points = accuracy_points(metrics)
    places = sorted({point.place for point in points})
    x = alt.X("place:Q", title="radius ε in 1/255", axis=alt.Axis(values=places))
    scale, axis = alt.Scale(domain=[0.0, 1.0]), alt.Axis(format="%")
    y = alt.Y("value:Q", title="accuracy", scale=scale, axis=axis)
    caption = (
        "Accuracy under the worst attack on each image, with 95% Wilson intervals, against the "
        "radius; at 0 no image is attacked."
    )
    return report_figure("accuracy", caption, spoken(points, "at ε"), line_chart(points, x, y))


def main() -> None:
    """Reads the metrics and writes the figure."""
    parser = argparse.ArgumentParser(prog="tools.accuracy_figure")
    parser.add_argument("metrics", type=pathlib.Path, help="metrics.json of an evaluation")
    parser.add_argument("output", type=pathlib.Path, help="SVG file to write")
    options = parser.parse_args()
    figure = accuracy_figure(read_typed(Metrics, options.metrics))
    write_text(options.output, figure.svg())


if __name__ == "__main__":
    main()
