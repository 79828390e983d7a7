"""Sections on the images, on how everything was made, and on how to make it again."""

import json

from sfm_tf.report.comparison_sections import condition_name
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.tables import plain_table

_COMMAND_NOTE = (
    "Each command measures the figures of one row again, those of all its defences; of the "
    "evaluation's settings it changes nothing else. WORKDIR and other words in capitals stand for "
    "places of your own. Setting audit_examples to 0 leaves out the audit's measurements, which "
    "change no accuracy."
)

_DEPENDENT_NOTE = (
    "Here attacks went on only with what those before them had left, so a command runs those too."
)


def commands_section(inputs: ReportInputs) -> Section:
    """Returns a command for each row under attack."""
    rows = ((condition_name(each.condition), each.command) for each in inputs.commands)
    table = plain_table("Commands", ("Accuracy", "command"), rows)
    is_dependent = inputs.evaluation.robust_accuracy_only
    notes = (_COMMAND_NOTE, _DEPENDENT_NOTE) if is_dependent else (_COMMAND_NOTE,)
    return Section("How to run a row again", notes, (table,))


def data_section(inputs: ReportInputs) -> Section:
    """Returns what the images are and how many of each class were evaluated."""
    splits = plain_table(
        f"Images of {inputs.dataset}",
        ("Split", "images", "exact duplicates", "mean", "standard deviation"),
        (
            (
                split,
                f"{values['count']:,}",
                f"{values['exact_duplicates']:,}",
                ", ".join(f"{mean:.3f}" for mean in values["mean"]),
                ", ".join(f"{deviation:.3f}" for deviation in values["std"]),
            )
            for split, values in inputs.statistics.items()
        ),
    )
    available = inputs.statistics["test"]["class_counts"]
    classes = plain_table(
        "Test images of each class",
        ("Class", "evaluated", "in the test split"),
        (
            (name, f"{count:,}", f"{available[name]:,}")
            for name, count in inputs.class_counts.items()
        ),
    )
    return Section("Data", (), (splits, classes))


def provenance_section(inputs: ReportInputs) -> Section:
    """Returns the stages with their settings, seeds and versions of packages."""
    stages = plain_table(
        "Stages",
        ("Stage", "fingerprint", "seed", "started (UTC)", "seconds"),
        (
            (m.stage, m.fingerprint[:16], m.seed, m.started, f"{m.wall_seconds:,.1f}")
            for m in inputs.manifests
        ),
    )
    versions = {
        (package, version): None
        for manifest in inputs.manifests
        for package, version in manifest.package_versions.items()
    }
    packages = plain_table("Packages", ("Package", "version"), versions)
    settings = plain_table(
        "Settings",
        ("Setting", "value"),
        (
            (f"{manifest.stage}: {section}.{name}", json.dumps(value))
            for manifest in inputs.manifests
            for section, values in manifest.config.items()
            for name, value in values.items()
        ),
    )
    return Section("Provenance", (), (stages, packages, settings))
