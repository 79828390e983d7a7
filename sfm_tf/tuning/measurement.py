"""What trainings are compared by: accuracy on validation images, clean and under PGD."""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.attack_execution import Progress
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import DEFENDED, UNDEFENDED
from sfm_tf.evaluation.runner import evaluate
from sfm_tf.models.defended_model import DefendedModel

_BLACK_BOX = "black_box"
_GRAY_BOX = "gray_box"
_ATTACK = "pgd"

SHARED_SETTINGS = ("epsilons", "iterations", "step_size", "gradient_samples", "attack_batch_size")
"""Settings of an evaluation that a measurement takes over."""


def measurement_settings(evaluation: EvaluationConfig, *, gray_box: bool) -> EvaluationConfig:
    """Returns the settings of PGD at the smallest radius of an evaluation (section 6.2).

    That is 8/255 in the L-infinity norm, as in Yu et al. 2022, unless the experiment has other
    radii.

    Args:
        evaluation: The experiment's own settings; what they say beside radii, steps and batches is
            left out, so that it changes no measurement.
        gray_box: Whether the gray box is measured too.
    """
    shared = {name: getattr(evaluation, name) for name in SHARED_SETTINGS}
    shared["epsilons"] = (min(evaluation.epsilons),)
    threat_models = (_BLACK_BOX, _GRAY_BOX) if gray_box else (_BLACK_BOX,)
    return EvaluationConfig(
        num_examples=0, attacks=(_ATTACK,), threat_models=threat_models, **shared
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The images and attacks that are the same for all trainings that are compared.

    Attributes:
        source: Independent model that the black box starts from.
        images: Validation images, float32 in [0, 1], `(count, height, width, channels)`.
        labels: Their class indices, `(count,)`.
        config: What `measurement_settings` returned.
        seed: Seed of the attacks.
        folder: Where the images of the black box are kept, made once for all.
        progress: Told of each batch.
    """

    source: keras.Model
    images: np.ndarray
    labels: np.ndarray
    config: EvaluationConfig
    seed: int
    folder: pathlib.Path
    progress: Progress

    def source_scores(self) -> dict[str, float]:
        """Makes the images of the black box; returns how the source model itself fares on them.

        Returns:
            Accuracies `clean` and `attacked`. Where the second is high, the radius is too small for
            the black box to tell models apart.
        """
        model = DefendedModel(self.source)
        clean, attacked = self._accuracies(UNDEFENDED, model, _BLACK_BOX, self.folder)
        return {"clean": clean, "attacked": attacked}

    def scores(self, defended: DefendedModel, folder: pathlib.Path) -> dict[str, Any]:
        """Returns what a trained model is worth.

        Args:
            defended: Classifier behind masker and pre-processing T.
            folder: Where the images are kept that are made for this model alone.

        Returns:
            Accuracies `clean`, `black_box` and `gray_box`, the last one None where it is not asked
            for; `examples`, the number of images; and `epsilon`, the radius in 1/255.
        """
        clean, black_box = self._accuracies(DEFENDED, defended, _BLACK_BOX, self.folder)
        gray_box = None
        if _GRAY_BOX in self.config.threat_models:
            _, gray_box = self._accuracies(DEFENDED, defended, _GRAY_BOX, folder)
        return {
            "clean": clean,
            "black_box": black_box,
            "gray_box": gray_box,
            "examples": len(self.labels),
            "epsilon": self.config.epsilons[0],
        }

    def _accuracies(
        self, name: str, model: DefendedModel, threat_model: str, folder: pathlib.Path
    ) -> tuple[float, float]:
        """Returns the accuracy on clean images, and on those of one threat model."""
        evaluation = evaluate(
            {name: model},
            self.source if threat_model == _BLACK_BOX else None,
            self.images,
            self.labels,
            dataclasses.replace(self.config, threat_models=(threat_model,)),
            self.seed,
            folder,
            self.progress,
        )
        metrics = summarise(evaluation.results)
        (clean,), (attacked,) = metrics["clean"], metrics["under_attack"]
        return clean["accuracy"], attacked["accuracy"]
