"""The figures that the paper prints, as data.

Yu et al. 2022, "SFM-Defence: Filtering Adversarial Perturbation by Sparse Feature Masker", section
6, Tables 1 to 8, every row as printed.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from sfm_tf.evaluation.metrics import Accuracy, Metrics
from sfm_tf.evaluation.results import DEFENDED, UNDEFENDED
from sfm_tf.evaluation.runner import Cost
from sfm_tf.report.tables import (
    NOT_RUN,
    Cell,
    Row,
    Table,
    accuracy_cell,
    attack_name,
    defence_name,
    find_entry,
    per_cent,
)

CAVEAT = (
    "The paper's networks, training and test images differ from those measured here, so the "
    "figures show the same quantity, not the same experiment."
)

MISPRINT = (
    "Row TVM of the paper's Table 4 repeats the clean accuracy under FGSM, so its figures seem to "
    "stand one column too far to the right; they are shown as printed."
)

MEASURED_AS: Mapping[str, str] = {
    "Vanilla": UNDEFENDED,
    "None": UNDEFENDED,
    "FS": "feature_squeezing",
    "TVM": "tvm",
    "Quilt": "quilting",
    "PixelDefend": "pixel_defend",
    "Sensitivity": "sensitivity",
}
"""Name in the metrics of a row of the paper; every other row is the paper's own defence."""


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """One cell of a table of the paper.

    Attributes:
        dataset: Name of the dataset as in `sfm_tf.datasets.settings.DataConfig`.
        table: Number of the table.
        row: Label of its row.
        threat_model: `black_box`, `gray_box` or `white_box`.
        attack: `clean`, `fgsm`, `pgd`, `mim`, `diverse` or `cw`.
        epsilon: Radius of the L-infinity ball in 1/255; 0 for clean images and for CW.
        accuracy: In [0, 1].
    """

    dataset: str
    table: int
    row: str
    threat_model: str
    attack: str
    epsilon: float
    accuracy: float

    @property
    def defence(self) -> str:
        """Name of the row's defence in the metrics of an evaluation."""
        return MEASURED_AS.get(self.row, DEFENDED)


@dataclasses.dataclass(frozen=True)
class PaperCost:
    """One column of the paper's Table 8, on CIFAR-10.

    Attributes:
        row: Label of the defence.
        training_minutes: Training for 50 epochs.
        defending_minutes: Classifying 10,000 images.
    """

    row: str
    training_minutes: float
    defending_minutes: float


_TRANSFER = "clean-0 pgd-8 pgd-16 mim-8 mim-16 diverse-8 diverse-16"
_DIRECT = "clean-0 fgsm-8 fgsm-16 pgd-8 pgd-16 cw-0"

# Dataset, threat model, columns, and per row of the table its label and per cents.
_TABLES = {
    1: (
        ("cifar10", "black_box", _TRANSFER),
        ("Vanilla", "87.1 34.8 21.3 24.4 12.2 20.8 10.4"),
        ("FS", "85.0 44.5 28.4 32.5 15.4 28.3 13.5"),
        ("TVM", "82.7 50.5 23.6 36.6 16.2 32.4 14.1"),
        ("Quilt", "77.5 64.8 52.9 53.6 34.1 51.3 30.5"),
        ("PixelDefend", "78.9 46.9 29.1 34.9 16.0 31.1 13.8"),
        ("Sensitivity", "77.6 62.2 56.3 53.8 45.4 51.0 44.5"),
        ("Ours", "86.2 64.6 40.3 59.7 33.3 55.1 31.3"),
    ),
    2: (
        ("cifar10", "gray_box", _DIRECT),
        ("Vanilla", "87.1 14.2 11.8 7.2 6.8 8.2"),
        ("FS", "85.0 18.4 13.4 8.2 6.9 8.6"),
        ("TVM", "82.7 25.5 13.3 7.9 6.8 8.6"),
        ("Quilt", "77.5 32.4 17.8 25.8 10.8 35.5"),
        ("PixelDefend", "78.9 18.2 13.0 8.2 6.8 10.2"),
        ("Sensitivity", "77.6 34.3 27.0 43.8 33.4 51.1"),
        ("Ours", "86.2 56.8 34.2 51.5 34.7 84.9"),
    ),
    3: (
        ("svhn_cropped", "black_box", _TRANSFER),
        ("Vanilla", "93.8 30.2 13.6 30.0 10.0 28.8 9.3"),
        ("FS", "92.7 33.2 15.5 32.6 11.4 31.6 10.7"),
        ("TVM", "92.6 34.3 15.3 33.6 11.1 32.7 10.4"),
        ("Quilt", "93.3 36.0 16.7 35.1 11.6 34.2 11.1"),
        ("PixelDefend", "92.5 30.9 13.6 30.6 9.9 29.4 9.3"),
        ("Sensitivity", "92.5 57.9 29.8 60.6 25.2 60.4 24.2"),
        ("Ours", "91.3 70.0 52.6 67.1 50.3 65.8 48.1"),
    ),
    4: (
        ("svhn_cropped", "gray_box", _DIRECT),
        ("Vanilla", "93.8 18.0 5.9 8.8 3.7 3.8"),
        ("FS", "92.7 20.2 6.6 11.1 4.6 5.1"),
        ("TVM", "92.6 92.6 27.1 7.3 10.5 3.8"),
        ("Quilt", "93.3 21.7 6.8 12.1 4.4 4.7"),
        ("PixelDefend", "92.5 18.2 5.5 9.4 3.6 3.9"),
        ("Sensitivity", "92.5 35.8 16.5 40.4 17.5 35.5"),
        ("Ours", "91.3 64.1 50.7 42.1 17.9 87.9"),
    ),
    5: (
        ("tiny_imagenet", "black_box", _TRANSFER),
        ("Vanilla", "69.9 19.3 10.3 17.4 8.3 14.8 7.5"),
        ("FS", "66.6 20.2 10.3 17.1 8.4 14.8 7.4"),
        ("TVM", "67.1 20.2 10.9 17.5 8.7 14.8 7.7"),
        ("Quilt", "64.6 35.1 24.6 31.6 14.2 28.1 12.4"),
        ("Sensitivity", "60.1 37.8 32.8 36.1 23.0 33.8 19.9"),
        ("Ours", "58.4 40.3 30.1 38.7 22.5 37.2 18.2"),
    ),
    6: (
        ("tiny_imagenet", "gray_box", _DIRECT),
        ("Vanilla", "69.9 7.4 4.5 7.1 5.9 11.4"),
        ("FS", "66.6 8.0 6.1 8.7 6.4 0.0"),
        ("TVM", "67.1 12.3 6.4 8.0 5.5 12.3"),
        ("Quilt", "64.6 15.4 8.2 12.8 8.8 20.4"),
        ("Sensitivity", "60.1 17.1 9.9 23.0 17.2 35.0"),
        ("Ours", "58.4 24.9 15.6 25.3 19.9 53.0"),
    ),
}

# Table 7 has a row for each dataset.
_WHITE_BOX = {
    "cifar10": ("CIFAR10", "86.2 51.5 37.4 11.0 4.7 1.6"),
    "svhn_cropped": ("SVHN", "91.3 66.2 43.4 29.6 17.1 31.7"),
    "tiny_imagenet": ("Tiny-ImageNet", "58.4 10.4 7.6 0.4 0.1 0.2"),
}

PAPER_COSTS = (
    PaperCost("None", 78.9, 0.3),
    PaperCost("FS", 78.9, 0.3),
    PaperCost("PixelDefend", 208.3, 0.8),
    PaperCost("Sensitivity", 78.9, 9.6),
    PaperCost("Ours", 231.7, 0.8),
)
"""Table 8."""


def paper_results(dataset: str) -> Iterator[PaperResult]:
    """Yields the paper's figures for a dataset, none if the paper does not use it."""
    for table, ((name, threat_model, columns), *rows) in _TABLES.items():
        if name == dataset:
            for row, per_cents in rows:
                yield from _cells(name, table, row, threat_model, columns, per_cents)
    if dataset in _WHITE_BOX:
        row, per_cents = _WHITE_BOX[dataset]
        yield from _cells(dataset, 7, row, "white_box", _DIRECT, per_cents)


def _cells(
    dataset: str, table: int, row: str, threat_model: str, columns: str, per_cents: str
) -> Iterator[PaperResult]:
    for column, printed in zip(columns.split(), per_cents.split(), strict=True):
        attack, epsilon = column.split("-")
        accuracy = round(float(printed) / 100.0, 3)
        yield PaperResult(dataset, table, row, threat_model, attack, float(epsilon), accuracy)


def comparison_tables(dataset: str, metrics: Metrics) -> Iterator[Table]:
    """Yields, for each of Tables 1 to 7 that is of this dataset, the measured and printed figures.

    Args:
        dataset: Name of the dataset as in `sfm_tf.datasets.settings.DataConfig`.
        metrics: Figures of an evaluation.

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


def _compare(metrics: Metrics, printed: PaperResult) -> Cell:
    measured = _measured(metrics, printed)
    remark = f"paper {per_cent(printed.accuracy)}"
    if measured is not None:
        points = 100.0 * (measured.accuracy - printed.accuracy)
        remark = f"{remark}, difference {points:+.1f}"
    return accuracy_cell(measured, remark)


def _measured(metrics: Metrics, printed: PaperResult) -> Accuracy | None:
    if printed.attack == "clean":
        return metrics.clean_accuracy(printed.defence)
    key = {
        "defence": printed.defence,
        "threat_model": printed.threat_model,
        "attack": printed.attack,
    }
    if printed.attack == "cw":  # At any norm.
        return find_entry(metrics.minimum_norm, **key)
    return find_entry(metrics.under_attack, **key, epsilon=printed.epsilon)


def cost_table(
    dataset: str, costs: Sequence[Cost], training_seconds: Mapping[str, float]
) -> Table | None:
    """Returns what each defence costs, beside the paper's Table 8 where that is of this dataset.

    Args:
        dataset: Name of the dataset as in `sfm_tf.datasets.settings.DataConfig`.
        costs: What `sfm_tf.evaluation.runner.measure_costs` returned.
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
    entry: Cost,
    training_seconds: Mapping[str, float],
    printed: Mapping[str, tuple[float, float]],
) -> Row:
    defence = entry.defence
    defending, training = printed.get(defence, (math.nan, math.nan))
    seconds, bare = training_seconds.get(defence), training_seconds.get("undefended")
    ratio = seconds / bare if seconds is not None and bare else None
    return Row(
        defence_name(defence),
        (
            Cell(f"{entry.seconds_per_1000_images:.3g}"),
            _ratio_cell(entry.relative_to_undefended, defending),
            Cell(NOT_RUN if seconds is None else f"{seconds:,.0f}"),
            _ratio_cell(ratio, training),
        ),
    )


def _ratio_cell(measured: float | None, printed: float) -> Cell:
    remark = "" if math.isnan(printed) else f"paper {printed:.2f}"
    return Cell(NOT_RUN if measured is None else f"{measured:.2f}", remark=remark)
