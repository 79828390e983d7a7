"""How long a training took: kept apart from its history, which is to be the same every time."""

from collections.abc import Mapping

from sfm_tf.training.checkpoints import History
from sfm_tf.training.phases import Phase

_SECONDS = "seconds"


def split_seconds(history: History) -> tuple[History, dict[str, float]]:
    """Takes what was measured in seconds out of the history of one training.

    An epoch that was interrupted counts with its second, whole run alone. The first pass in each
    process includes the making of the graph.

    Args:
        history: As `fitting` returns it.

    Returns:
        The history without the seconds; and those of all passes over the training images by what
        was trained: `classifier`, `masker`, or `both` where they take turns at every step.
    """
    lasting = [{name: epoch[name] for name in epoch if name != _SECONDS} for epoch in history]
    measured = [epoch[_SECONDS] for epoch in history]
    phases = [phase.name.lower() for phase in Phase]
    sums = {phase: sum(seconds.get(phase, 0.0) for seconds in measured) for phase in phases}
    return lasting, {phase: round(value, 3) for phase, value in sums.items() if value}


def defence_timing(defence: Mapping[str, float], source: Mapping[str, float]) -> dict[str, float]:
    """Returns the content of `timing.json`: seconds of the parts of the train stage.

    Args:
        defence: Of classifier and masker, as `split_seconds` returns them.
        source: Of the independent model.

    Returns:
        `classifier_seconds`, `masker_seconds` and `source_seconds`; for an alternation by steps
        also `both_seconds`, of classifier and masker together.
    """
    timing = {"classifier": 0.0, "masker": 0.0, **defence, "source": sum(source.values())}
    return {f"{part}_seconds": value for part, value in timing.items()}
