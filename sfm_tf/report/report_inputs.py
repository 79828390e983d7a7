"""What a report is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.config import EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.blessing import Blessing


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images with what the defence makes of them, all float32 in [0, 1], channels last.

    Attributes:
        images: Inputs x.
        masks: G(x), of one channel.
        masked: G(x) * x.
        defended: T(G(x) * x).
    """

    images: np.ndarray
    masks: np.ndarray
    masked: np.ndarray
    defended: np.ndarray


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Images with what an attack makes of them.

    Attributes:
        threat_model: What the attacker knows.
        attack: Name of the attack.
        epsilon: Radius of the L-infinity ball in 1/255.
        images: Clean images, float32 in [0, 1], channels last.
        adversarial_images: Of the same shape.
    """

    threat_model: str
    attack: str
    epsilon: float
    images: np.ndarray
    adversarial_images: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything a report shows; it measures nothing itself.

    Attributes:
        experiment: Name of the experiment.
        dataset: Name of the dataset as in `sfm_tf.config.DataConfig`.
        statistics: What `sfm_tf.records.statistics.compute_statistics` returned.
        class_counts: How many of the evaluated images are of each class, by class name.
        evaluation: Settings the evaluation ran with.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        blessing: The evaluation's verdict.
        history: For `defence` and `source`, per epoch its `stage`, `training` and `validation`;
            empty for a model that was not trained here.
        manifests: Manifests of the stages, in the order they ran.
        gallery: Test images with their masks; None for a model without a defence.
        perturbations: Test images under attack.
    """

    experiment: str
    dataset: str
    statistics: Mapping[str, Mapping[str, Any]]
    class_counts: Mapping[str, int]
    evaluation: EvaluationConfig
    metrics: Mapping[str, Any]
    blessing: Blessing
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    manifests: Sequence[Manifest]
    gallery: Gallery | None
    perturbations: Sequence[Perturbation] = ()

    def __post_init__(self) -> None:
        """Raises `SfmError` if the figures are not of the images that were counted."""
        counted = sum(self.class_counts.values())
        parts = {
            part: {entry["examples"] for entry in self.metrics[part]}
            for part in ("clean", "under_attack", "worst_case")
        }
        # A decision-based attacker spends its queries on the first few images.
        if parts["clean"] != {counted} or max({counted}.union(*parts.values())) > counted:
            raise SfmError(
                f"The figures are of {sorted(set().union(*parts.values()))} images but the classes "
                f"count {counted}; run the evaluation again."
            )
