"""The table of what trainings that lack something are worth, beside Figure 5 of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfm_tf.evaluation.intervals import wilson_interval
from sfm_tf.report.tables import NOT_RUN, Cell, Row, Table, accuracy_cell

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
