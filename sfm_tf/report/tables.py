"""Tables of an evaluation as data, and their rendering for a terminal."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.blessing import Check
from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.metrics import Accuracy, Metrics, MinimumNorm, WorstCase
from sfm_tf.evaluation.paired_answers import ALL_THREATS
from sfm_tf.evaluation.results import OWN_MODEL
from sfm_tf.evaluation.significance import wilson_interval
from sfm_tf.settings import PIXEL_LEVELS

NOT_RUN = "not run"
"""What stands where nothing was measured; no cell is ever empty."""

ATTACK_NAMES: Mapping[str, str] = {name: kind.title for name, kind in ATTACKS.items()}
"""Attacks as their authors or the paper write them."""

_EXPECTED_ATTACKS = ("fgsm", "pgd")
"""Attacks a table has columns for where none was run."""

DEFENCE_NAMES: Mapping[str, str] = {
    **{name: defence.title for name, defence in DEFENCES.items()},
    OWN_MODEL: "own model",
}
"""Defences in the report's words."""


_FIGURE = re.compile(r"[-+<≤≥(]?\s?\d")
"""What a figure begins with."""

NO_SUCCESS, NO_IMAGE = "no success", "no image"
"""Stand where an attack broke no image, and where there was none."""

_MISSING = (NOT_RUN, NO_SUCCESS, NO_IMAGE, "none")
"""Words that stand in the place of a figure."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: The figure or words.
        interval: Its 95% Wilson interval; empty where it has none.
        remark: What belongs to it, such as the strongest attack; may be empty.
    """

    value: str
    interval: str = ""
    remark: str = ""

    def __str__(self) -> str:
        """Returns all parts on one line."""
        figure = f"{self.value} {self.interval}".rstrip()
        return f"{figure}, {self.remark}" if self.remark else figure


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: what it is of, and one cell for each column after the first."""

    label: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; its first column holds the labels of the rows.

    Attributes:
        title: What the table shows.
        columns: Heads of all columns, that of the labels first.
        rows: The rows, each with one cell less than there are columns.
        is_folded: Whether a page shows its title only until a reader opens it; a print shows all.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    is_folded: bool = False

    def is_text(self, place: int) -> bool:
        """Whether a column holds words, which are read from the left, rather than figures."""
        values = [row.cells[place - 1].value if place else row.label for row in self.rows]
        told = [value for value in values if value not in _MISSING]
        words = [value for value in told if not _FIGURE.match(value)]
        return not place or 2 * len(words) > len(told)

    def transposed(self) -> "Table":
        """Returns the table with rows and columns exchanged."""
        rows = tuple(
            Row(column, tuple(row.cells[place] for row in self.rows))
            for place, column in enumerate(self.columns[1:])
        )
        columns = (self.columns[0], *(row.label for row in self.rows))
        return Table(self.title, columns, rows, self.is_folded)


def plain_table(title: str, columns: Iterable[str], rows: Iterable[tuple[object, ...]]) -> Table:
    """Returns a table of plain values, the first of each row being its label."""
    made = tuple(
        Row(str(label), tuple(v if isinstance(v, Cell) else Cell(str(v)) for v in values))
        for label, *values in rows
    )
    return Table(title, tuple(columns), made)


def per_cent(share: float) -> str:
    """Returns a share in [0, 1] as per cents with one decimal."""
    return f"{share:.1%}"


def interval_cell(share: float, low: float, high: float, remark: str = "") -> Cell:
    """Returns a share with the ends of its interval, all in [0, 1]."""
    return Cell(per_cent(share), f"({100.0 * low:.1f}–{100.0 * high:.1f})", remark)


def accuracy_cell(entry: Accuracy | None, remark: str = "") -> Cell:
    """Returns an accuracy with its interval, and for a worst case the strongest attack.

    Args:
        entry: The accuracy; None where nothing was measured.
        remark: What else the cell says.
    """
    if entry is None:
        return Cell(NOT_RUN, remark=remark)
    if isinstance(entry, WorstCase) and not remark:
        attack = entry.strongest_attack
        remark = "no attack worked" if attack is None else attack_name(attack)
    return interval_cell(entry.accuracy, entry.accuracy_low, entry.accuracy_high, remark)


def attack_name(attack: str) -> str:
    """Returns an attack's name as the paper writes it."""
    return ATTACK_NAMES[attack]


def defence_name(defence: str) -> str:
    """Returns a defence's name in the report's words."""
    return DEFENCE_NAMES.get(defence, defence)


Entry = TypeVar("Entry")


def find_entry(entries: Iterable[Entry], **keys: Any) -> Entry | None:
    """Returns the first entry whose attributes have these values, or None."""
    return next(
        (e for e in entries if all(getattr(e, name) == value for name, value in keys.items())),
        None,
    )


def accuracy_entries(
    metrics: Metrics, defence: str, threat_model: str, epsilons: Iterable[float]
) -> dict[str, Accuracy | None]:
    """Returns what was measured of a defence under a threat model, by the column it belongs to.

    Args:
        metrics: Figures of an evaluation.
        defence: Name of the defence in the metrics.
        threat_model: Value of a `ThreatModel`.
        epsilons: Radii in 1/255.

    Returns:
        Entries, None where nothing was measured, for clean images, for each attack at each radius,
        and for the worst attack per image at each radius.
    """
    radii = tuple(epsilons)
    key = {"defence": defence, "threat_model": threat_model}
    attacks = dict.fromkeys(
        entry.attack for entry in metrics.under_attack if entry.threat_model == threat_model
    )
    return {
        "clean": metrics.clean_accuracy(defence),
        **{
            f"{attack_name(attack)} {radius:g}/255": find_entry(
                metrics.under_attack, **key, attack=attack, epsilon=radius
            )
            for attack in tuple(attacks) or _EXPECTED_ATTACKS
            for radius in radii
        },
        **{f"worst case {r:g}/255": metrics.worst(**key, epsilon=r) for r in radii},
    }


def accuracy_table(
    metrics: Metrics, threat_model: str, title: str, epsilons: Iterable[float]
) -> Table:
    """Returns the accuracies under one threat model, a row per defence (as Tables 1 to 7).

    Args:
        metrics: Figures of an evaluation.
        threat_model: Value of a `ThreatModel`.
        title: What the table shows.
        epsilons: Radii in 1/255.

    Returns:
        The table, its columns those of `accuracy_entries`.
    """
    lines = {
        label: accuracy_entries(metrics, defence, threat_model, epsilons)
        for defence, label in defences(metrics)
    }
    rows = tuple(
        Row(label, tuple(map(accuracy_cell, line.values()))) for label, line in lines.items()
    )
    return Table(title, ("Defence", *next(iter(lines.values()))), rows)


def worst_case_table(metrics: Metrics, threat_models: Mapping[str, str]) -> Table:
    """Returns the worst case per image over all attacks and radii, for each threat model and all.

    Args:
        metrics: Figures of an evaluation.
        threat_models: Names of the threat models in words.
    """
    names = {**threat_models, ALL_THREATS: "all threat models"}
    rows = tuple(
        Row(label, tuple(accuracy_cell(metrics.worst(defence, name)) for name in names))
        for defence, label in defences(metrics)
    )
    return Table(
        "Worst case per image over all attacks and radii", ("Defence", *names.values()), rows
    )


def minimum_norm_table(metrics: Metrics, threat_model: str) -> Table | None:
    """Returns what the attacks for the smallest perturbation found; None where none was run.

    Args:
        metrics: Figures of an evaluation.
        threat_model: Value of a `ThreatModel`.
    """
    entries = [entry for entry in metrics.minimum_norm if entry.threat_model == threat_model]
    if not entries:
        return None
    return plain_table(
        "Smallest perturbations, at any norm",
        ("Defence, attack", "images", "success", "median L∞ in 1/255", "median L2"),
        (
            (
                f"{defence_name(entry.defence)}, {attack_name(entry.attack)}",
                f"{entry.examples:,}",
                *_smallest(entry),
            )
            for entry in entries
        ),
    )


def _smallest(entry: MinimumNorm) -> tuple[str, str, str]:
    success = entry.attack_success
    if success is None or entry.median_linf is None or entry.median_l2 is None:
        return "no image was right" if success is None else per_cent(0.0), "none", "none"
    return (
        per_cent(success),
        f"{PIXEL_LEVELS * entry.median_linf:.2f}",
        f"{entry.median_l2:.3f}",
    )


def defences(metrics: Metrics) -> Iterator[tuple[str, str]]:
    """Yields the name of each defence in the metrics and in the report's words."""
    for entry in metrics.clean:
        yield entry.defence, defence_name(entry.defence)


def threshold_table(checks: Iterable[Check]) -> Table:
    """Returns what was required of a model and what was measured."""
    rows = (
        (check.name, "pass" if check.passed else "fail", check.measured, check.required)
        for check in checks
    )
    return plain_table("Thresholds", ("Threshold", "result", "measured", "required"), rows)


def class_count_table(statistics: Mapping[str, Any], class_counts: Mapping[str, int]) -> Table:
    """Returns how many test images of each class there are and were evaluated.

    Args:
        statistics: What `sfm_tf.records.statistics.compute_statistics` returned.
        class_counts: How many of the evaluated images are of each class, by class name.
    """
    available = statistics["test"]["class_counts"]
    return plain_table(
        "Test images of each class",
        ("Class", "evaluated", "in the test split"),
        ((name, f"{count:,}", f"{available[name]:,}") for name, count in class_counts.items()),
    )


def package_table(manifests: Iterable[Manifest]) -> Table:
    """Returns the versions of the numerical packages that the stages ran with."""
    versions = dict.fromkeys(
        item for manifest in manifests for item in manifest.package_versions.items()
    )
    return plain_table("Packages", ("Package", "version"), versions)


def render_text(table: Table) -> str:
    """Returns a table for a terminal: its title, then aligned columns, labels to the left.

    Args:
        table: The table; `transposed()` is narrower where it has few rows.
    """
    lines = [table.columns, *((row.label, *map(str, row.cells)) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    aligned = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in (lines[0], rule, *lines[1:])
    )
    return "\n".join([table.title, *aligned])


_ABLATION_ACCURACIES = ("clean", "black_box", "gray_box")
_ABLATION_COLUMNS = (
    "Training",
    "clean",
    "black box",
    "gray box",
    "mean of masks",
    "spread of masks",
)


def ablation_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    """Returns accuracies and masks of the complete training and of those that lack something.

    Args:
        scores: What `sfm_tf.tuning.ablations.AblationStudy.run` returned, at least one entry.
    """
    measured = [entry for entry in scores if not entry["failure"]]
    title = "Trainings that lack something, on validation images"
    if measured:
        examples, epsilon = measured[0]["examples"], measured[0]["epsilon"]
        title = (
            f"Trainings that lack something, on {examples:,} validation images, clean and under "
            f"PGD at {epsilon:g}/255: accuracy and 95% interval"
        )
    return Table(
        title,
        _ABLATION_COLUMNS,
        tuple(Row(entry["words"], _ablation_cells(entry)) for entry in scores),
    )


def _ablation_cells(entry: Mapping[str, Any]) -> tuple[Cell, ...]:
    if entry["failure"]:
        return Cell("failed", remark=entry["failure"]), *[Cell(NOT_RUN)] * (
            len(_ABLATION_COLUMNS) - 2
        )
    accuracies = (_accuracy(entry[name], entry["examples"]) for name in _ABLATION_ACCURACIES)
    collapse = entry["collapse"].partition(" (")[0]  # Which weight to change is not news here.
    return (
        *accuracies,
        Cell(f"{entry['mask_mean']:.3f}", remark=collapse),
        Cell(f"{entry['mask_spread']:.3f}"),
    )


def _accuracy(accuracy: float | None, examples: int) -> Cell:
    if accuracy is None:
        return Cell(NOT_RUN)
    return interval_cell(accuracy, *wilson_interval(round(accuracy * examples), examples))


def operating_point_table(summary: Mapping[str, Any]) -> Table:
    """Returns the detector's threshold and how many clean images it flags.

    Args:
        summary: What `sfm_tf.audit.detection.detection_summary` returned.
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
        summary: What `sfm_tf.audit.detection.detection_summary` returned.
        threat_models: Names of the threat models in words, in the order of the rows.
        title: What the table shows.
    """
    columns = ("Attack", "images", "flagged", "successful", "flagged of these", "AUC of these")
    rows = tuple(_detection_row(entry, threat_models) for entry in ordered(summary, threat_models))
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
    return interval_cell(flagged["rate"], flagged["rate_low"], flagged["rate_high"])


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


def _detection_row(entry: Mapping[str, Any], threat_models: Mapping[str, str]) -> Row:
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
