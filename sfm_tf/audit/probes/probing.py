"""Where probes attack and score models: everything is compiled once and measured once."""

import dataclasses
import math
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from scipy.special import gammaln

from sfm_tf.artifacts.progress import Progress
from sfm_tf.attacks.attack import AttackOutcome, CompiledAttack
from sfm_tf.attacks.norm_balls import BALLS
from sfm_tf.audit.probes.probed_models import Ablation, SwitchedModel, Switches
from sfm_tf.evaluation.attack_building import build_attack, step_size_at
from sfm_tf.evaluation.attack_catalogue import NORMS
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.logit_losses import stable_cross_entropy
from sfm_tf.settings import PIXEL_LEVELS

LADDER = (0.25, 0.5, 1.0, 2.0)
"""Multiples of the largest evaluated radius."""

# A change of one half turns every image of values in [0, 1] into one and the same grey.
_GREY = 0.5


def huge_radius(norm: str, dimensions: int) -> float:
    """Returns a radius at which no classifier can be right more often than by guessing.

    Args:
        norm: `inf` or `2`.
        dimensions: Values of an image.

    Returns:
        Radius in 1/255 of a ball that holds, around every image, the grey of 1/2.
    """
    return PIXEL_LEVELS * _GREY * (1.0 if norm == "inf" else math.sqrt(dimensions))


def ladder_radii(epsilon: float, norm: str, dimensions: int) -> list[float]:
    """Returns radii in 1/255 that rise from a part of `epsilon` to the huge one.

    Args:
        epsilon: Largest evaluated radius, in 1/255.
        norm: `inf` or `2`.
        dimensions: Values of an image.
    """
    huge = huge_radius(norm, dimensions)
    return [*(share * epsilon for share in LADDER if share * epsilon < huge), huge]


def equal_volume_radius(epsilon: float, norm: str, dimensions: int) -> float:
    """Returns the radius at which the ball of the other norm has the same volume.

    A cube of half side r has the volume (2 r)^d, a ball of radius r in L2
    pi^(d/2) r^d / gamma(d/2 + 1). For CIFAR-10's 3072 values, 8/255 in L-infinity compares with
    0.84 in L2.

    Args:
        epsilon: Radius in the norm `norm`, in 1/255.
        norm: `inf` or `2`.
        dimensions: Values of an image.
    """
    unit_ball = 0.5 * dimensions * math.log(math.pi) - gammaln(0.5 * dimensions + 1.0)
    ratio = math.exp(math.log(2.0) - unit_ball / dimensions)
    return epsilon * ratio if norm == "inf" else epsilon / ratio


@dataclasses.dataclass(frozen=True)
class Prober:
    """The images of the probes, the settings of their attacks, and what was measured so far.

    PGD is that of the evaluation, but with one random start, to the end for every image, and in
    float32. What is attacked is the model under test, its switches set, or another model.

    Attributes:
        switched: The model under test with its switches.
        samples: The images.
        config: Norm, radii, iterations, step size, looks of a gradient and batch size.
        seed: Seed of the attacks.
        progress: Told of each probe.
    """

    switched: SwitchedModel
    samples: Samples
    config: EvaluationConfig
    seed: int
    progress: Progress
    _classifiers: dict[int, TensorFlowV2Classifier] = dataclasses.field(default_factory=dict)
    _attacks: dict[Hashable, CompiledAttack] = dataclasses.field(default_factory=dict)
    _outcomes: dict[Hashable, AttackOutcome] = dataclasses.field(default_factory=dict)

    @property
    def epsilon(self) -> float:
        """The largest evaluated radius, in 1/255."""
        return max(self.config.epsilons)

    @property
    def batch_size(self) -> int:
        """Images attacked at a time: no more than there are, for a batch is filled up."""
        return min(self.config.attack_batch_size, len(self.samples))

    @property
    def dimensions(self) -> int:
        """Values of an image."""
        return int(np.prod(self.samples.images.shape[1:]))

    def logits(self, target: Switches | keras.Model, images: np.ndarray) -> np.ndarray:
        """Returns float32 of shape `(count, classes)`."""
        return self._classifier(target).predict(images)

    def right(self, target: Switches | keras.Model, images: np.ndarray) -> np.ndarray:
        """Returns whether a model is right on images made of the samples, bool `(count,)`."""
        return np.argmax(self.logits(target, images), axis=1) == self.samples.labels

    def clean_loss(self, target: Switches | keras.Model) -> np.ndarray:
        """Returns the stable cross-entropy of each sample without an attack, float32 `(count,)`."""
        logits = tf.constant(self.logits(target, self.samples.images))
        return stable_cross_entropy(logits, tf.constant(self.samples.labels)).numpy()

    def step_size(self, epsilon: float) -> float:
        """Returns PGD's step at a radius, both in 1/255, as the evaluation's attacks take it."""
        return step_size_at(epsilon, self.config)

    def pgd(
        self, target: Switches | keras.Model, classes: np.ndarray | None = None, **changes: Any
    ) -> AttackOutcome:
        """Returns what PGD makes of the samples; asked for again, it is not made again.

        Args:
            target: The model that is attacked; another one than the subject is known by identity.
            classes: Int64 `(count,)`: classes to reach; None to leave the label.
            **changes: Options of `ProjectedGradientDescent`, radius and step in 1/255; by default
                the evaluation's at the largest radius.
        """
        epsilon = changes.get("epsilon", self.epsilon)
        options = {
            "norm": NORMS[self.config.norm],
            "epsilon": epsilon,
            "step_size": self.step_size(epsilon),
            "iterations": self.config.iterations,
            "restarts": 1,
            "random_start": True,
            "seed": self.seed,
            "loss": "stable_cross_entropy",
            **changes,
            "targeted": classes is not None,
        }
        key = (
            target if isinstance(target, Switches) else id(target),
            None if classes is None else classes.tobytes(),
            tuple(sorted(options.items())),
        )
        if key not in self._outcomes:
            labels = self.samples.labels if classes is None else classes
            lengths = {name: options[name] / PIXEL_LEVELS for name in ("epsilon", "step_size")}
            classifier = self._classifier(target)
            attack = self._pgd_on(classifier, options["norm"], options["targeted"], options["loss"])
            attack.set_params(**{**options, **lengths})
            self._outcomes[key] = attack.run(self.samples.images, labels)
        return self._outcomes[key]

    def right_under_pgd(self, ablation: Ablation, **changes: Any) -> np.ndarray:
        """Returns whether a model is right on what PGD makes of the samples, bool `(count,)`."""
        return self.right(ablation.scored, self.pgd(ablation.attacked, **changes).images)

    def within_ball(self, images: np.ndarray) -> np.ndarray:
        """Returns the nearest images of the samples' balls of the largest radius, in [0, 1]."""
        project = BALLS[NORMS[self.config.norm]].project
        change = tf.constant(np.clip(images, 0.0, 1.0) - self.samples.images, tf.float32)
        changed = self.samples.images + project(change, self.epsilon / PIXEL_LEVELS).numpy()
        return np.clip(changed, 0.0, 1.0)

    def run(
        self, name: str, target: Switches | keras.Model, rows: np.ndarray, **changes: Any
    ) -> np.ndarray:
        """Returns what an attack of the catalogue makes of some samples at the largest radius.

        Args:
            name: Its name there.
            target: The model that is attacked.
            rows: Indices of the samples.
            **changes: Settings of the evaluation that differ.
        """
        attack = self._build(name, self._classifier(target), **changes)
        images, labels = self.samples.images[rows], self.samples.labels[rows]
        return attack.run(images, labels, positions=rows).images

    def report(self, phrase: str) -> None:
        """Tells what is measured next."""
        self.progress(f"audit: {phrase}", 0, len(self.samples))

    def _classifier(self, target: Switches | keras.Model) -> TensorFlowV2Classifier:
        """Returns a model as the classifier that attacks take, as it is until the next call."""
        if isinstance(target, Switches):
            self.switched.switch(target)
            target = self.switched.model
        if id(target) not in self._classifiers:
            self._classifiers[id(target)] = self.samples.wrap(target, self.batch_size)
        return self._classifiers[id(target)]

    def _pgd_on(self, classifier: TensorFlowV2Classifier, *shape: Hashable) -> CompiledAttack:
        # Norm, goal and loss are not numbers in the compiled loop but shape it: one attack for all
        # of them would be compiled again and again, and TensorFlow would warn of it.
        key = (id(classifier), *shape)
        if key not in self._attacks:
            self._attacks[key] = self._build("pgd", classifier)
        return self._attacks[key]

    def _build(
        self, name: str, classifier: TensorFlowV2Classifier, **changes: Any
    ) -> CompiledAttack:
        settings = {
            "restarts": 1,
            "robust_accuracy_only": False,
            "attack_batch_size": self.batch_size,
            **changes,
        }
        config = dataclasses.replace(self.config, **settings)
        return build_attack(name, classifier, self.epsilon / PIXEL_LEVELS, config, self.seed)
