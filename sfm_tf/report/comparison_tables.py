"""Measured figures beside those that the paper prints, a table for each of the paper's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.report.paper import MEASURED_AS, PAPER_COSTS, PaperResult, paper_results
from sfm_tf.report.tables import (
    DEFENCE_NAMES,
    NOT_RUN,
    Cell,
    Row,
    Table,
    accuracy_cell,
    attack_name,
    find_entry,
    per_cent,
)

_COUNTED_IMAGES = 10_000
"""Images that Table 8 of the paper gives times for."""


def comparison_tables(dataset: str, metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Yields, for each of Tables 1 to 7 that is of this dataset, the measured and printed figures.

    Args:
        dataset: Name of the dataset as in `sfm_tf.config.DataConfig`.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.

    Yields:
        Tables with the paper's rows and columns; a cell is the measured accuracy, or that it was
        not run, with the printed one and the difference in percentage points.
    """
    tables: dict[int, dict[str, list[PaperResult]]] = {}
    for result in paper_results(dataset):
        tables.setdefault(result.table, {}).setdefault(result.row, []).append(result)
    for number, lines in tables.items():
        first = next(iter(lines.values()))
        rows = tuple(
            Row(label, tuple(_compare(metrics, result) for result in line))
            for label, line in lines.items()
        )
        box = first[0].threat_model.replace("_", " ")
        title = f"Table {number} of the paper: {box}, measured and printed"
        yield Table(title, ("Row of the paper", *map(_head, first)), rows)


def _head(result: PaperResult) -> str:
    if result.attack == "clean":
        return "clean"
    radius = f" {result.epsilon:g}/255" if result.epsilon else ""
    return f"{attack_name(result.attack)}{radius}"


def _compare(metrics: Mapping[str, Any], printed: PaperResult) -> Cell:
    measured = _measured(metrics, printed)
    remark = f"paper {per_cent(printed.accuracy)}"
    if measured is not None:
        points = 100.0 * (measured["accuracy"] - printed.accuracy)
        remark = f"{remark}, difference {points:+.1f}"
    return accuracy_cell(measured, remark)


def _measured(metrics: Mapping[str, Any], printed: PaperResult) -> Mapping[str, Any] | None:
    if printed.attack == "clean":
        return find_entry(metrics["clean"], defence=printed.defence)
    key = {
        "defence": printed.defence,
        "threat_model": printed.threat_model,
        "attack": printed.attack,
    }
    if printed.attack == "cw":  # At any norm.
        return find_entry(metrics["minimum_norm"], **key)
    return find_entry(metrics["under_attack"], **key, epsilon=printed.epsilon)


def cost_table(
    dataset: str, costs: Sequence[Mapping[str, Any]], training_seconds: Mapping[str, float]
) -> Table | None:
    """Returns what each defence costs, beside the paper's Table 8 where that is of this dataset.

    Args:
        dataset: Name of the dataset as in `sfm_tf.config.DataConfig`.
        costs: What `sfm_tf.evaluation.costs.measure_costs` returned.
        training_seconds: Seconds that the training of a defence took, classifier included, by
            defence; those of the bare classifier are needed for a ratio.

    Returns:
        The table; None where nothing was measured. Times differ between machines, so it has ratios
        to the undefended model, of the same run, beside them.
    """
    if not costs:
        return None
    printed = _printed_costs() if dataset == "cifar10" else {}
    rows = tuple(_cost_row(entry, training_seconds, printed) for entry in costs)
    columns = (
        "Defence",
        "seconds per 1,000 images",
        "to undefended",
        "training seconds",
        "training to undefended",
    )
    return Table("What the defences cost, as Table 8 of the paper", columns, rows)


def _printed_costs() -> dict[str, tuple[float, float]]:
    """Returns the ratios of defending and training that Table 8 has, by defence."""
    bare = PAPER_COSTS[0]
    return {
        MEASURED_AS.get(cost.row, "sfm"): (
            cost.defending_minutes / bare.defending_minutes,
            cost.training_minutes / bare.training_minutes,
        )
        for cost in PAPER_COSTS
    }


def _cost_row(
    entry: Mapping[str, Any],
    training_seconds: Mapping[str, float],
    printed: Mapping[str, tuple[float, float]],
) -> Row:
    defence = entry["defence"]
    defending, training = printed.get(defence, (math.nan, math.nan))
    seconds, bare = training_seconds.get(defence), training_seconds.get("undefended")
    ratio = seconds / bare if seconds is not None and bare else None
    return Row(
        DEFENCE_NAMES.get(defence, defence),
        (
            Cell(f"{entry['seconds_per_1000_images']:.3g}"),
            _ratio_cell(entry["relative_to_undefended"], defending),
            Cell(NOT_RUN if seconds is None else f"{seconds:,.0f}"),
            _ratio_cell(ratio, training),
        ),
    )


def _ratio_cell(measured: float | None, printed: float) -> Cell:
    remark = "" if math.isnan(printed) else f"paper {printed:.2f}"
    return Cell(NOT_RUN if measured is None else f"{measured:.2f}", remark=remark)
