"""Tables of what a detector of adversarial images flags."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sfm_tf.report.tables import NOT_RUN, Cell, Row, Table, attack_name, per_cent, plain_table

NO_SUCCESS = "no success"
"""What stands where an attack left every image right that was right before."""


def operating_point_table(summary: Mapping[str, Any]) -> Table:
    """Returns the detector's threshold and how many clean images it flags.

    Args:
        summary: What `sfm_tf.evaluation.detection.detection_summary` returned.
    """
    return plain_table(
        "The detector on clean images",
        ("Quantity", "value"),
        (
            ("threshold, of scores from 0 to 2", f"{summary['threshold']:.4g}"),
            ("false positives allowed", per_cent(summary["false_positive_rate"])),
            ("false positives on validation images", rate_cell(summary["validation"])),
            ("false positives on test images", rate_cell(summary["clean"])),
        ),
    )


def detection_table(
    summary: Mapping[str, Any], threat_models: Mapping[str, str], title: str
) -> Table:
    """Returns what the detector flags of each attack's images, a row per attack and radius.

    Args:
        summary: What `sfm_tf.evaluation.detection.detection_summary` returned.
        threat_models: Names of the threat models in words, in the order of the rows.
        title: What the table shows.
    """
    columns = ("Attack", "images", "flagged", "successful", "flagged of these", "AUC of these")
    rows = tuple(_row(entry, threat_models) for entry in ordered(summary, threat_models))
    return Table(title, columns, rows)


def rate_cell(flagged: Mapping[str, Any] | None) -> Cell:
    """Returns the share of some images that is flagged, with its interval.

    Args:
        flagged: An entry with `rate`, `rate_low` and `rate_high`, None where there are no images;
            None where nothing was measured.
    """
    if flagged is None:
        return Cell(NOT_RUN)
    if flagged["rate"] is None:
        return Cell(NO_SUCCESS)
    low, high = 100.0 * flagged["rate_low"], 100.0 * flagged["rate_high"]
    return Cell(per_cent(flagged["rate"]), f"({low:.1f}–{high:.1f})")


def radius(entry: Mapping[str, Any]) -> str:
    """Returns the radius of an attack in words."""
    return "any size" if entry["epsilon"] is None else f"{entry['epsilon']:g}/255"


def ordered(
    summary: Mapping[str, Any], threat_models: Iterable[str]
) -> Iterator[Mapping[str, Any]]:
    """Yields the attacks of a summary, threat model by threat model."""
    for threat_model in threat_models:
        for entry in summary["attacked"]:
            if entry["threat_model"] == threat_model:
                yield entry


def largest_radii(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns of each attack of each threat model the entry of the largest radius.

    An attack that finds its own radius has the largest.
    """
    largest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for entry in entries:
        key = (entry["threat_model"], entry["attack"])
        if key not in largest or _size(entry) > _size(largest[key]):
            largest[key] = entry
    return list(largest.values())


def _size(entry: Mapping[str, Any]) -> float:
    return math.inf if entry["epsilon"] is None else entry["epsilon"]


def _row(entry: Mapping[str, Any], threat_models: Mapping[str, str]) -> Row:
    threat_model = threat_models[entry["threat_model"]].capitalize()
    successful = entry["successful"]
    area = NO_SUCCESS if entry["auc"] is None else f"{entry['auc']:.3f}"
    cells = (
        Cell(f"{entry['all']['examples']:,}"),
        rate_cell(entry["all"]),
        Cell(f"{successful['examples']:,}"),
        rate_cell(successful),
        Cell(area),
    )
    return Row(f"{threat_model}, {attack_name(entry['attack'])} {radius(entry)}", cells)
