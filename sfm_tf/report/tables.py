"""Tables of an evaluation as data, and their rendering for a terminal."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.evaluation.attack_catalogue import ATTACKS
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: The figure or words.
        interval: Its 95% Wilson interval; empty where it has none.
        remark: What belongs to it, such as the attack that won; may be empty.
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
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def transposed(self) -> "Table":
        """Returns the table with rows and columns exchanged."""
        rows = tuple(
            Row(column, tuple(row.cells[place] for row in self.rows))
            for place, column in enumerate(self.columns[1:])
        )
        return Table(self.title, (self.columns[0], *(row.label for row in self.rows)), rows)


def plain_table(title: str, columns: Iterable[str], rows: Iterable[tuple[object, ...]]) -> Table:
    """Returns a table of plain values, the first of each row being its label."""
    made = tuple(Row(str(label), tuple(Cell(str(v)) for v in values)) for label, *values in rows)
    return Table(title, tuple(columns), made)


def per_cent(share: float) -> str:
    """Returns a share in [0, 1] as per cents with one decimal."""
    return f"{share:.1%}"


def accuracy_cell(entry: Mapping[str, Any] | None, remark: str = "") -> Cell:
    """Returns accuracy and interval of an entry of the metrics.

    Args:
        entry: An entry with `accuracy`, `accuracy_low` and `accuracy_high`; None where nothing was
            measured.
        remark: What else the cell says.
    """
    if entry is None:
        return Cell(NOT_RUN, remark=remark)
    low, high = 100.0 * entry["accuracy_low"], 100.0 * entry["accuracy_high"]
    return Cell(per_cent(entry["accuracy"]), f"({low:.1f}–{high:.1f})", remark)


def worst_case_cell(entry: Mapping[str, Any] | None) -> Cell:
    """Returns a worst case with the attack that turned most images wrong, or `not run`."""
    if entry is None:
        return accuracy_cell(None)
    attack = entry["strongest_attack"]
    won = "no attack won" if attack is None else f"{attack_name(attack)} won most"
    return accuracy_cell(entry, won)


def attack_name(attack: str) -> str:
    """Returns an attack's name as the paper writes it."""
    return ATTACK_NAMES[attack]


def find_entry(entries: Iterable[Mapping[str, Any]], **keys: Any) -> Mapping[str, Any] | None:
    """Returns the entry of the metrics that has these values, or None where it was not run."""
    matching = (e for e in entries if all(e[name] == value for name, value in keys.items()))
    return next(matching, None)


def accuracy_entries(
    metrics: Mapping[str, Any], defence: str, threat_model: str, epsilons: Iterable[float]
) -> dict[str, Mapping[str, Any] | None]:
    """Returns what was measured of a defence under a threat model, by the column it belongs to.

    Args:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        defence: Name of the defence in the metrics.
        threat_model: Value of a `ThreatModel`.
        epsilons: Radii in 1/255.

    Returns:
        Entries, None where nothing was measured, for clean images, for each attack at each radius,
        and for the worst attack per image at each radius.
    """
    radii = tuple(epsilons)
    key = {"defence": defence, "threat_model": threat_model}
    attacked, worst = metrics["under_attack"], metrics["worst_case"]
    return {
        "clean": find_entry(metrics["clean"], defence=defence),
        **{
            f"{attack_name(attack)} {radius:g}/255": find_entry(
                attacked, **key, attack=attack, epsilon=radius
            )
            for attack in _attacks(metrics, threat_model)
            for radius in radii
        },
        **{f"worst case {r:g}/255": find_entry(worst, **key, epsilon=r) for r in radii},
    }


def accuracy_table(
    metrics: Mapping[str, Any], threat_model: str, title: str, epsilons: Iterable[float]
) -> Table:
    """Returns the accuracies under one threat model, a row per defence (as Tables 1 to 7).

    Args:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
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
    rows = tuple(Row(label, tuple(map(_cell, line.values()))) for label, line in lines.items())
    return Table(title, ("Defence", *next(iter(lines.values()))), rows)


def _cell(entry: Mapping[str, Any] | None) -> Cell:
    is_worst_case = entry is not None and "strongest_attack" in entry
    return worst_case_cell(entry) if is_worst_case else accuracy_cell(entry)


def worst_case_table(metrics: Mapping[str, Any], threat_models: Mapping[str, str]) -> Table:
    """Returns the worst case per image over all attacks and radii, for each threat model and all.

    Args:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        threat_models: Names of the threat models in words.
    """
    names = {**threat_models, ALL_THREATS: "all threat models"}
    rows = tuple(
        Row(
            label,
            tuple(
                worst_case_cell(
                    find_entry(
                        metrics["worst_case"], defence=defence, threat_model=name, epsilon=None
                    )
                )
                for name in names
            ),
        )
        for defence, label in defences(metrics)
    )
    return Table(
        "Worst case per image over all attacks and radii", ("Defence", *names.values()), rows
    )


def minimum_norm_table(metrics: Mapping[str, Any], threat_model: str) -> Table | None:
    """Returns what the attacks for the smallest perturbation found; None where none was run.

    Args:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        threat_model: Value of a `ThreatModel`.
    """
    entries = [e for e in metrics["minimum_norm"] if e["threat_model"] == threat_model]
    if not entries:
        return None
    names = dict(defences(metrics))
    return plain_table(
        "Smallest perturbations, at any norm",
        ("Defence, attack", "images", "success", "median L∞ in 1/255", "median L2"),
        (
            (
                f"{names[entry['defence']]}, {attack_name(entry['attack'])}",
                f"{entry['examples']:,}",
                *_smallest(entry),
            )
            for entry in entries
        ),
    )


def _smallest(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    success = entry["attack_success"]
    if not success:
        return "no image was right" if success is None else per_cent(0.0), "none", "none"
    linf, l2 = PIXEL_LEVELS * entry["median_linf"], entry["median_l2"]
    return per_cent(success), f"{linf:.2f}", f"{l2:.3f}"


def defences(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the name of each defence in the metrics and in the report's words."""
    measured = (entry["defence"] for entry in metrics["clean"])
    for defence in measured:
        yield defence, DEFENCE_NAMES.get(defence, defence)


def _attacks(metrics: Mapping[str, Any], threat_model: str) -> tuple[str, ...]:
    measured = dict.fromkeys(
        entry["attack"]
        for entry in metrics["under_attack"]
        if entry["threat_model"] == threat_model
    )
    return tuple(measured) or _EXPECTED_ATTACKS


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


_ACCURACIES = ("clean", "black_box", "gray_box")
_COLUMNS = ("Training", "clean", "black box", "gray box", "mean of masks", "spread of masks")


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
    return Table(title, _COLUMNS, tuple(Row(entry["words"], _cells(entry)) for entry in scores))


def _cells(entry: Mapping[str, Any]) -> tuple[Cell, ...]:
    if entry["failure"]:
        return Cell("failed", remark=entry["failure"]), *[Cell(NOT_RUN)] * (len(_COLUMNS) - 2)
    accuracies = (_accuracy(entry[name], entry["examples"]) for name in _ACCURACIES)
    collapse = entry["collapse"].partition(" (")[0]  # Which weight to change is not news here.
    return (
        *accuracies,
        Cell(f"{entry['mask_mean']:.3f}", remark=collapse),
        Cell(f"{entry['mask_spread']:.3f}"),
    )


def _accuracy(accuracy: float | None, examples: int) -> Cell:
    if accuracy is None:
        return accuracy_cell(None)
    low, high = wilson_interval(round(accuracy * examples), examples)
    return accuracy_cell({"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high})


NO_SUCCESS = "no success"
"""What stands where an attack left every image right that was right before."""


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
