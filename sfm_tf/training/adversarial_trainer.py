"""Adversarial training of the classifier, and of classifier and masker, as a Keras training step.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks" (`pgd`), and
Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy" (`trades`),
both applied to the whole defended pipeline F(T(G(x) * x)).
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.settings import PIXEL_LEVELS
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer

Measure = Callable[[tf.Tensor], tf.Tensor]
"""From images `(batch, height, width, channels)` to the loss of each, `(batch,)`."""


def adversarial_images(
    images: tf.Tensor,
    measure: Measure,
    epsilon: float,
    step_size: float,
    iterations: int,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Returns images near the given ones on which `measure` is large.

    The attack is PGD: it starts at a random point of the L-infinity ball around each image and
    takes `iterations` steps along the sign of the gradient. It returns the last point and not the
    worst one, which would need one more forward pass.

    Args:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        measure: The function to maximise, differentiable by TensorFlow.
        epsilon: Radius of the ball, in units of brightness.
        step_size: Length of a step in each value, in the same units.
        iterations: Number of steps; 0 for the random start alone.
        seed: Integers of shape `(2,)`; the same seed gives the same start.

    Returns:
        Float32 in [0, 1], of the images' shape, without a gradient.
    """
    lower, upper = tf.maximum(images - epsilon, 0.0), tf.minimum(images + epsilon, 1.0)

    def clip(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(values, lower, upper)

    def step(attacked: tf.Tensor) -> tuple[tf.Tensor]:
        return (clip(attacked + step_size * tf.sign(_gradient(measure, attacked))),)

    noise = tf.random.stateless_uniform(tf.shape(images), seed, -epsilon, epsilon)
    (attacked,) = tf.while_loop(
        lambda attacked: True, step, (clip(images + noise),), maximum_iterations=iterations
    )
    return tf.stop_gradient(tf.ensure_shape(attacked, images.shape))


def _gradient(measure: Measure, images: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of each image's loss; those of variables are not asked for."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        # One image's loss does not depend on another's, so the sum has the gradients of all.
        loss = tf.reduce_sum(measure(images))
    return tape.gradient(loss, images)


METHODS = ("pgd", "trades")
_VALIDATION_ITERATIONS = 5
_BALL_SHARE = 2.5
"""Steps of the validation's attack add up to this many radii, so that it reaches any corner."""
_CLASSIFIER_DRAWS, _MASKER_DRAWS, _VALIDATION_DRAWS = range(3)


def divergences(logits: tf.Tensor, other_logits: tf.Tensor) -> tf.Tensor:
    """Returns the Kullback-Leibler divergence KL(p || q) of each image's two answers.

    Args:
        logits: Float32 of shape `(batch, classes)`, of p.
        other_logits: Float32 of the same shape, of q.

    Returns:
        Float32 of shape `(batch,)`, at least 0 apart from rounding.
    """
    logarithms = tf.nn.log_softmax(logits)
    differences = logarithms - tf.nn.log_softmax(other_logits)
    return tf.reduce_sum(tf.exp(logarithms) * differences, axis=1)


@keras.saving.register_keras_serializable(package="sfm_tf")
class AdversarialTrainer(SparseFeatureMaskerTrainer):
    """Trains the parts of a `DefendedModel` in turn on adversarial images of all of it.

    The classifier learns behind mask and pre-processing: it sees T(G(x) * x), not T(x) as in
    Algorithm 1. The masker learns by Eq. 2 on x' near x: F(G(x') * x') is to be F(x). As in
    Algorithm 1, T(x') and T(x) stand for x' and x if the settings say `preprocess_training`.
    The attack sees the model in inference mode, and T by the gradient of its surrogate. While
    `is_pretraining` is set, the steps are those of `SparseFeatureMaskerTrainer`.

    Args:
        defended: See `SparseFeatureMaskerTrainer`.
        config: Also the method, its attack and its beta. `pgd` minimises the cross-entropy of the
            adversarial images; `trades` that of the clean images plus beta, 1 / lambda of Zhang et
            al., Eq. 5, times the divergence of the answers to adversarial images from those to
            clean ones.
        seed: Seed of the attack's random starts, from 0 to 2^31 - 1. A start depends on it and on
            the number of steps taken, which checkpoints keep.
        **options: Further arguments of `keras.Model`.

    Raises:
        SfmError: If the settings name no method.
    """

    def __init__(
        self, defended: DefendedModel, config: TrainingConfig, *, seed: int, **options: Any
    ) -> None:
        """Keeps the parts; they are shared with the caller, not copied."""
        if config.adversarial_training not in METHODS:
            raise SfmError(
                f"Unknown adversarial training {config.adversarial_training!r}; expected one of "
                f"{', '.join(METHODS)}."
            )
        super().__init__(defended, config, **options)
        self.seed = seed
        self.epsilon = config.adversarial_epsilon / PIXEL_LEVELS
        self.step_size = config.adversarial_step_size / PIXEL_LEVELS
        self.steps = self.add_weight(
            name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.trackers["adversarial_accuracy"] = keras.metrics.Mean(name="adversarial_accuracy")

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on a batch of `(images, labels)`, see `SparseFeatureMaskerTrainer`.

        After pre-training `classification_loss` is the loss of the method without weight decay, and
        `accuracy` is that on adversarial images.
        """
        if self.is_pretraining:
            results = super().train_step(data)
        else:
            images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
            results = self._train_adversarially(images, labels)
        self.steps.assign_add(1)
        return results

    def _train_adversarially(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        methods = {"pgd": self._train_by_pgd, "trades": self._train_by_trades}
        train_classifier = methods[self.config.adversarial_training]
        if self.phase != Phase.MASKER:
            train_classifier(images, labels)
        if self.phase != Phase.CLASSIFIER and self.defended.masker is not None:
            target_logits = self._frozen_logits(self._preprocessed(images))
            attacked = self._attack(images, self._cross_entropy_of(labels), _MASKER_DRAWS)
            self._train_masker(self._preprocessed(attacked), target_logits, labels)
        return self._measured()

    def _train_by_pgd(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        attacked = self._attack(images, self._cross_entropy_of(labels), _CLASSIFIER_DRAWS)
        self._train_classifier(self.defended.defended(attacked), labels)

    def _train_by_trades(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        classifier = self.defended.classifier
        seen = self.defended.defended(images)
        clean_logits = classifier(seen, training=False)
        attacked = self._attack(
            images,
            lambda attacked: divergences(clean_logits, self.defended(attacked)),
            _CLASSIFIER_DRAWS,
        )
        seen_attacked = self.defended.defended(attacked)
        with tf.GradientTape() as tape:
            logits = classifier(seen, training=True)
            attacked_logits = classifier(seen_attacked, training=True)
            losses = _cross_entropies(labels, logits)
            losses += self.config.trades_beta * divergences(logits, attacked_logits)
            loss = tf.reduce_mean(losses) + self._kernel_penalty()
            loss = self.optimizer.scale_loss(loss)
        self.trackers["classification_loss"].update_state(losses)
        self._track_accuracy("accuracy", attacked_logits, labels)
        self._descend(self.optimizer, classifier, tape, loss)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures a batch of `(images, labels)`, see `SparseFeatureMaskerTrainer`.

        Returns:
            Also `adversarial_accuracy`: of F(T(G(x) * x)) on images of a short attack on the
            cross-entropy, within the radius of the training.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        measured = super().test_step(data)
        attacked = adversarial_images(
            images,
            self._cross_entropy_of(labels),
            self.epsilon,
            _BALL_SHARE * self.epsilon / _VALIDATION_ITERATIONS,
            _VALIDATION_ITERATIONS,
            tf.constant([self.seed, _VALIDATION_DRAWS]),
        )
        self._track_accuracy("adversarial_accuracy", self.defended(attacked), labels)
        return {**measured, "adversarial_accuracy": self.trackers["adversarial_accuracy"].result()}

    def _attack(self, images: tf.Tensor, measure: Measure, draws: int) -> tf.Tensor:
        seed = tf.random.experimental.stateless_fold_in(
            tf.constant([self.seed, draws]), tf.convert_to_tensor(self.steps)
        )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        iterations = self.config.adversarial_iterations
        return adversarial_images(images, measure, self.epsilon, self.step_size, iterations, seed)

    def _cross_entropy_of(self, labels: tf.Tensor) -> Measure:
        return lambda images: _cross_entropies(labels, self.defended(images))

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` rebuilds the trainer from."""
        return {**super().get_config(), "seed": self.seed}


def _cross_entropies(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
