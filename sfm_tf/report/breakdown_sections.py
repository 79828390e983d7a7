"""Sections on single classes and on single images that an attack turned wrong."""

from collections.abc import Mapping

from sfm_tf.report.breakdown_figures import class_chart, confusion_map
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.tables import Row, Table, accuracy_cell
from sfm_tf.report.worst_failures import failure_gallery, failure_table

_COLUMNS = ("clean", "worst_case")


def class_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns the accuracies of each class, and what its images are taken for under attack.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title = "Classes"
    if inputs.breakdown is None:
        return Section(
            title, ("The results of single images are not stored, so no class is told apart.",)
        )
    classes, confusion = inputs.breakdown["per_class"], inputs.breakdown["confusion"]
    rows = tuple(
        Row(entry["class"], tuple(accuracy_cell(entry[key]) for key in _COLUMNS))
        for entry in classes
    )
    table = Table(
        "Accuracy of each class and 95% interval",
        ("Class", "clean", "worst case over all threat models and radii"),
        rows,
    )
    chart = class_chart("classes", classes)
    if confusion is None:
        sentence = "No attack at a radius was run, so no images were mistaken under one."
        return Section(title, (sentence,), (table,), (chart,))
    names = [entry["class"] for entry in classes]
    confused = confusion_map("confusion", confusion, names, threat_models)
    return Section(title, (), (table,), (chart, confused))


def failure_section(inputs: ReportInputs, threat_models: Mapping[str, str]) -> Section:
    """Returns the images that the smallest perturbations turned wrong.

    Args:
        inputs: What the report shows.
        threat_models: Names of the threat models in words.
    """
    title, gallery = "Worst failures", inputs.failures
    if gallery is None:
        return Section(
            title, ("The results of single images are not stored, so no failure is shown.",)
        )
    if not gallery.failures:
        return Section(
            title, ("No attack at a radius turned an image wrong that was right before.",)
        )
    table = failure_table(gallery.failures, threat_models, inputs.evaluation.norm)
    return Section(title, (), (table,), (failure_gallery("failures", gallery),))
