"""The best trial of a tuning, and what other stages read from the files of a tuning."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.errors import SfmError
from sfm_tf.tuning.settings import WEIGHTS

BEST_FILE = "best.json"
TRIALS_FILE = "trials.json"

_VALUES = "values"
_CURVE = (
    "sparsity_weight",
    "rho",
    "clean",
    "black_box",
    "gray_box",
    "examples",
    "epsilon",
    "collapse",
)


def objective(trial: Mapping[str, Any]) -> float:
    """Returns clean plus black-box accuracy (Yu et al. 2022, section 6.2)."""
    return trial["clean"] + trial["black_box"]


def choose_best(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the trial with the largest objective, as `best.json` holds it.

    Of Hyperband's trials only those that were trained longest are compared. A collapsed mask
    defends nothing and costs nothing, so it may well have the largest objective. It wins only if
    the masks of all trials collapsed.

    Args:
        trials: Results of `Trial.run`.

    Returns:
        The trial, with `values` (its weights, named as in `TrainingConfig`), its `objective`, and
        `collapsed_above`, the number of trials with a larger objective but a collapsed mask.

    Raises:
        SfmError: If every trial failed.
    """
    finished = [trial for trial in trials if not trial["failure"]]
    if not finished:
        reason = trials[0]["failure"] if trials else "none was run"
        raise SfmError(f"All {len(trials)} trials failed; the first: {reason}")
    epochs = max(trial["epochs"] for trial in finished)
    compared = [trial for trial in finished if trial["epochs"] == epochs]
    alive = [trial for trial in compared if not trial["collapse"]]
    best = max(alive or compared, key=objective)  # The first of equals.
    above = [trial for trial in compared if objective(trial) > objective(best)]
    return {
        **best,
        _VALUES: {name: best[name] for name in WEIGHTS},
        "objective": objective(best),
        "collapsed_above": len(above),
    }


def tuned_values(folder: pathlib.Path) -> dict[str, float]:
    """Returns the best weights of a tuning, to override those of a `TrainingConfig`.

    Args:
        folder: Artifact of the tune stage.

    Raises:
        SfmError: If its best.json is missing or damaged.
    """
    path = folder / BEST_FILE
    try:
        values = read_json(path)[_VALUES]
        return {name: float(values[name]) for name in WEIGHTS}
    except (KeyError, TypeError, ValueError) as error:
        raise SfmError(
            f"Cannot read the weights of the best trial in {path} ({error!r}); run the tuning "
            "again with --force."
        ) from error


def sparsity_curve(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the data of Figure 3: accuracies against w1, with the w2 and w3 of the best trial.

    Args:
        folder: Artifact of the tune stage.

    Returns:
        For each value of w1 that was tried so, in rising order, `sparsity_weight`, the accuracies
        `clean`, `black_box` and `gray_box` (None where not measured), the number of `examples`,
        the radius `epsilon`, `rho` and the warning `collapse`.

    Raises:
        SfmError: If a file of the artifact is missing or damaged.
    """
    best = read_json(folder / BEST_FILE)
    trials = read_json(folder / TRIALS_FILE)["trials"]
    alike = ("semantic_weight", "reconstruction_weight", "epochs")
    shown = [
        {name: trial[name] for name in _CURVE}
        for trial in trials
        if not trial["failure"] and all(trial[name] == best[name] for name in alike)
    ]
    return sorted(shown, key=lambda trial: trial["sparsity_weight"])
