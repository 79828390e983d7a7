"""The section on how the defence was trained and its weights chosen."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfm_tf.report.curve_figures import tuning_curves
from sfm_tf.report.figures import training_curves
from sfm_tf.report.section import Section
from sfm_tf.report.tables import plain_table

_CURVES = (
    ("training", "classification_loss"),
    ("training", "mask_loss"),
    ("training", "sparsity"),
    ("training", "semantic"),
    ("training", "reconstruction"),
    ("validation", "mask_mean"),
    ("validation", "bare_accuracy"),
    ("validation", "defended_accuracy"),
)

_NO_TUNING = (
    "No tuning was run, so there is no accuracy against the weight of the sparsity loss (Figure 3 "
    "of the paper)."
)


def training_section(
    history: Mapping[str, Sequence[Mapping[str, Any]]],
    tuning: Sequence[Mapping[str, Any]] | None = None,
) -> Section:
    """Returns how the losses went, and accuracy against the weight of the sparsity loss.

    Args:
        history: For `defence`, per epoch its `training` and `validation`.
        tuning: As `sfm_tf.report.report_inputs.ReportInputs` has it.
    """
    epochs = history["defence"]
    curves = {
        f"{name.replace('_', ' ')} ({split})": [
            epoch[split].get(name, math.nan) for epoch in epochs
        ]
        for split, name in _CURVES
        if any(name in epoch[split] for epoch in epochs)
    }
    last = epochs[-1]["validation"].items()
    rows = ((name.replace("_", " "), f"{value:.4g}") for name, value in last)
    table = plain_table("Validation images, after the last epoch", ("Quantity", "Value"), rows)
    tuned = (tuning_curves("tuning", tuning),) if tuning else ()
    return Section(
        "Training",
        tuple(_tuning_remarks(tuning)) if tuned else (_NO_TUNING,),
        (table,),
        (training_curves("training", curves), *tuned),
    )


def _tuning_remarks(tuning: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what the figure of a tuning does not show, as far as it is known."""
    measured = tuning[0]
    if "examples" in measured and "epsilon" in measured:
        yield (
            f"Trials of the tuning were scored on {measured['examples']:,} validation images, "
            f"under PGD at {measured['epsilon']:g}/255 in L∞."
        )
    weights = [f"{trial['sparsity_weight']:g}" for trial in tuning if trial.get("collapse")]
    if weights:
        yield f"The mask collapsed in the trials with w₁ of {', '.join(weights)}."
