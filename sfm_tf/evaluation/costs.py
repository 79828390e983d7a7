"""What a defence costs: the time that its model takes, beside the bare classifier's."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfm_tf.evaluation.results import UNDEFENDED
from sfm_tf.evaluation.scoring import ScoredModel

_REPEATS = 3
_ENOUGH_SECONDS = 2.0
"""A pass that takes longer is not repeated: chance moves it little."""

_COUNTED = 1000


def measure_costs(
    scored: Mapping[str, ScoredModel], images: np.ndarray, batch_size: int
) -> list[dict[str, Any]]:
    """Returns how long each model takes for 1,000 images (as Yu et al. 2022, Table 8).

    The models take turns in one process on the same first batch of images, which each has seen
    before, so that nothing is compiled. Time is that of the fastest of up to three passes.

    Args:
        scored: The models by the names of their defences; each has predicted these images.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        batch_size: Images in a pass.

    Returns:
        For each defence its `defence`, `seconds_per_1000_images`, the `images` of a pass, and
        `relative_to_undefended`, None where the bare classifier is not among the models.
    """
    shown = images[:batch_size]
    seconds = _pass_seconds(scored, shown)
    bare = seconds.get(UNDEFENDED)
    return [
        {
            "defence": defence,
            "images": len(shown),
            "seconds_per_1000_images": taken * _COUNTED / len(shown),
            "relative_to_undefended": taken / bare if bare else None,
        }
        for defence, taken in seconds.items()
    ]


def _pass_seconds(scored: Mapping[str, ScoredModel], images: np.ndarray) -> dict[str, float]:
    fastest: dict[str, float] = {}
    for _ in range(_REPEATS):
        for name, model in scored.items():
            if fastest.get(name, 0.0) < _ENOUGH_SECONDS:
                taken = _seconds(model, images)
                fastest[name] = min(fastest.get(name, taken), taken)
    return fastest


def _seconds(model: ScoredModel, images: np.ndarray) -> float:
    start = time.perf_counter()
    model.predictions(images)
    return time.perf_counter() - start
