"""The accuracies that the paper prints, to stand beside the measured ones.

Yu et al. 2022, "SFM-Defence: Filtering Adversarial Perturbation by Sparse Feature Masker", section
6, Tables 1 to 7: the rows Vanilla, FS (feature squeezing) and Ours, as printed.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.evaluation.results import DEFENDED, UNDEFENDED
from sfm_tf.report.tables import Cell, Row, Table, accuracy_cell, attack_name, find_entry, per_cent

CAVEAT = (
    "The paper's networks, training and test images differ from those measured here, so the "
    "figures show the same quantity, not the same experiment."
)


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """One cell of a table of the paper.

    Attributes:
        dataset: Name of the dataset as in `sfm_tf.config.DataConfig`.
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


_MEASURED_AS = {"Vanilla": UNDEFENDED, "FS": "feature_squeezing"}
"""Name in the metrics of a row of the paper; every other row is the paper's own defence."""

_COMPARED = (("clean", 0.0), ("fgsm", 8.0), ("fgsm", 16.0), ("pgd", 8.0), ("pgd", 16.0))
"""Attacks, and radii in 1/255, that both the paper and the evaluation may have."""

_TRANSFER = "clean-0 pgd-8 pgd-16 mim-8 mim-16 diverse-8 diverse-16"
_DIRECT = "clean-0 fgsm-8 fgsm-16 pgd-8 pgd-16 cw-0"

# Dataset, table, row, threat model, columns, per cents.
_ROWS = (
    ("cifar10", 1, "Vanilla", "black_box", _TRANSFER, "87.1 34.8 21.3 24.4 12.2 20.8 10.4"),
    ("cifar10", 1, "FS", "black_box", _TRANSFER, "85.0 44.5 28.4 32.5 15.4 28.3 13.5"),
    ("cifar10", 1, "Ours", "black_box", _TRANSFER, "86.2 64.6 40.3 59.7 33.3 55.1 31.3"),
    ("cifar10", 2, "Vanilla", "gray_box", _DIRECT, "87.1 14.2 11.8 7.2 6.8 8.2"),
    ("cifar10", 2, "FS", "gray_box", _DIRECT, "85.0 18.4 13.4 8.2 6.9 8.6"),
    ("cifar10", 2, "Ours", "gray_box", _DIRECT, "86.2 56.8 34.2 51.5 34.7 84.9"),
    ("cifar10", 7, "CIFAR10", "white_box", _DIRECT, "86.2 51.5 37.4 11.0 4.7 1.6"),
    ("svhn_cropped", 3, "Vanilla", "black_box", _TRANSFER, "93.8 30.2 13.6 30.0 10.0 28.8 9.3"),
    ("svhn_cropped", 3, "FS", "black_box", _TRANSFER, "92.7 33.2 15.5 32.6 11.4 31.6 10.7"),
    ("svhn_cropped", 3, "Ours", "black_box", _TRANSFER, "91.3 70.0 52.6 67.1 50.3 65.8 48.1"),
    ("svhn_cropped", 4, "Vanilla", "gray_box", _DIRECT, "93.8 18.0 5.9 8.8 3.7 3.8"),
    ("svhn_cropped", 4, "FS", "gray_box", _DIRECT, "92.7 20.2 6.6 11.1 4.6 5.1"),
    ("svhn_cropped", 4, "Ours", "gray_box", _DIRECT, "91.3 64.1 50.7 42.1 17.9 87.9"),
    ("svhn_cropped", 7, "SVHN", "white_box", _DIRECT, "91.3 66.2 43.4 29.6 17.1 31.7"),
    ("tiny_imagenet", 5, "Vanilla", "black_box", _TRANSFER, "69.9 19.3 10.3 17.4 8.3 14.8 7.5"),
    ("tiny_imagenet", 5, "FS", "black_box", _TRANSFER, "66.6 20.2 10.3 17.1 8.4 14.8 7.4"),
    ("tiny_imagenet", 5, "Ours", "black_box", _TRANSFER, "58.4 40.3 30.1 38.7 22.5 37.2 18.2"),
    ("tiny_imagenet", 6, "Vanilla", "gray_box", _DIRECT, "69.9 7.4 4.5 7.1 5.9 11.4"),
    ("tiny_imagenet", 6, "FS", "gray_box", _DIRECT, "66.6 8.0 6.1 8.7 6.4 0.0"),
    ("tiny_imagenet", 6, "Ours", "gray_box", _DIRECT, "58.4 24.9 15.6 25.3 19.9 53.0"),
    ("tiny_imagenet", 7, "Tiny-ImageNet", "white_box", _DIRECT, "58.4 10.4 7.6 0.4 0.1 0.2"),
)


def paper_results(dataset: str) -> Iterator[PaperResult]:
    """Yields the paper's figures for a dataset, none if the paper does not use it."""
    for name, table, row, threat_model, columns, per_cents in _ROWS:
        if name != dataset:
            continue
        for column, printed in zip(columns.split(), per_cents.split(), strict=True):
            attack, epsilon = column.split("-")
            accuracy = round(float(printed) / 100.0, 3)
            yield PaperResult(name, table, row, threat_model, attack, float(epsilon), accuracy)


def comparison_table(dataset: str, metrics: Mapping[str, Any]) -> Table | None:
    """Returns the measured accuracies beside the paper's, a row for each row of the paper.

    Args:
        dataset: Name of the dataset as in `sfm_tf.config.DataConfig`.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.

    Returns:
        The table; None if the paper does not use the dataset.
    """
    lines: dict[tuple[int, str, str], dict[tuple[str, float], PaperResult]] = {}
    for result in paper_results(dataset):
        line = lines.setdefault((result.table, result.row, result.threat_model), {})
        line[result.attack, result.epsilon] = result
    if not lines:
        return None
    heads = (attack if not e else f"{attack_name(attack)} {e:g}/255" for attack, e in _COMPARED)
    rows = (
        Row(
            f"Table {table}, {row} ({threat_model.replace('_', ' ')})",
            tuple(_compare(metrics, threat_model, row, key, line.get(key)) for key in _COMPARED),
        )
        for (table, row, threat_model), line in lines.items()
    )
    return Table("Measured, and printed in the paper", ("Row of the paper", *heads), tuple(rows))


def _compare(
    metrics: Mapping[str, Any],
    threat_model: str,
    row: str,
    attack_and_epsilon: tuple[str, float],
    printed: PaperResult | None,
) -> Cell:
    attack, epsilon = attack_and_epsilon
    defence = _MEASURED_AS.get(row, DEFENDED)
    key = {"threat_model": threat_model, "attack": attack, "epsilon": epsilon}
    measured = (
        find_entry(metrics["clean"], defence=defence)
        if attack == "clean"
        else find_entry(metrics["under_attack"], defence=defence, **key)
    )
    remark = "not in the paper" if printed is None else f"paper {per_cent(printed.accuracy)}"
    return accuracy_cell(measured, remark)
