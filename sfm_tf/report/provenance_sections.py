"""Sections on the images and on how everything was made."""

import json

from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.tables import plain_table


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
