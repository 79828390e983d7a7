"""Algorithm 1 of Yu et al. 2022 as a Keras training step with two optimizers."""

import enum
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.losses import LossWeights, MaskerLoss, masker_loss


class Phase(enum.IntEnum):
    """Which part a training step changes; `BOTH` changes first the classifier, then the masker."""

    CLASSIFIER = 0
    MASKER = 1
    BOTH = 2


CLASSIFIER_METRICS = ("classification_loss", "accuracy")
MASKER_METRICS = (
    "mask_loss",
    "sparsity",
    "semantic",
    "reconstruction",
    "mask_mean",
    "mask_spread",
)
TRAINING_METRICS = {
    Phase.CLASSIFIER: CLASSIFIER_METRICS,
    Phase.MASKER: MASKER_METRICS,
    Phase.BOTH: CLASSIFIER_METRICS + MASKER_METRICS,
}
"""What a training step measures in each phase; its other metrics stay 0."""


@keras.saving.register_keras_serializable(package="sfm_tf")
class SparseFeatureMaskerTrainer(keras.Model):
    """Trains the parts of a `DefendedModel` in turn, as `phase` says.

    Set `trainer.phase.assign(Phase.MASKER)` between calls of `fit`; nothing is traced again. While
    one part is trained the other is frozen, its batch statistics included: the classifier's logits
    that the masker learns from are those of inference.

    Args:
        defended: Holds classifier F, masker G and pre-processing T. Without a masker only the
            classifier can be trained, as for an independent source model.
        sparsity_weight: w1 of Eq. 2.
        semantic_weight: w2 of Eq. 2.
        reconstruction_weight: w3 of Eq. 2.
        loss_reduction: `per_image` or `batch`, see `losses`.
        weight_decay: Factor of half the squared L2 norm of the classifier's kernels, which is added
            to its loss; biases and normalisation are not penalised.
        **options: Further arguments of `keras.Model`.
    """

    def __init__(
        self,
        defended: DefendedModel,
        *,
        sparsity_weight: float,
        semantic_weight: float,
        reconstruction_weight: float,
        loss_reduction: str,
        weight_decay: float,
        **options: Any,
    ) -> None:
        """Keeps the parts; they are shared with the caller, not copied."""
        super().__init__(**{**options, "dtype": "float32"})
        self.defended = defended
        self.sparsity_weight = sparsity_weight
        self.semantic_weight = semantic_weight
        self.reconstruction_weight = reconstruction_weight
        self.loss_reduction = loss_reduction
        self.weight_decay = weight_decay
        self.phase = self.add_weight(
            name="phase", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        names = (*CLASSIFIER_METRICS, *MASKER_METRICS, "bare_accuracy", "defended_accuracy")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Does nothing: the parts come built."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the defended model's logits."""
        return self.defended(images)

    def compile(
        self,
        classifier_optimizer: keras.optimizers.Optimizer,
        masker_optimizer: keras.optimizers.Optimizer | None = None,
    ) -> None:
        """Sets and builds the optimizers, scaling their losses where layers compute in float16.

        Args:
            classifier_optimizer: Changes the classifier; it is `trainer.optimizer`.
            masker_optimizer: Changes the masker; None where there is none.

        Raises:
            SfmError: If there is a masker without an optimizer or the reverse.
        """
        if (self.defended.masker is None) != (masker_optimizer is None):
            raise SfmError("A masker and a masker_optimizer are given together or not at all.")
        # No XLA: it has no kernel for part of T, and on CPUs it is slower than it saves.
        super().compile(
            optimizer=self._scaled(classifier_optimizer), auto_scale_loss=False, jit_compile=False
        )
        self.optimizer.build(self.defended.classifier.trainable_variables)
        self.masker_optimizer = None
        if masker_optimizer is not None:
            self.masker_optimizer = self._scaled(masker_optimizer)
            self.masker_optimizer.build(self.defended.masker.trainable_variables)

    def _scaled(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if is_scaled or self.defended.classifier.compute_dtype != "float16":
            return optimizer
        return keras.optimizers.LossScaleOptimizer(optimizer)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step of Algorithm 1 on a batch of `(images, labels)`.

        Args:
            data: Float32 images in [0, 1] of shape `(batch, height, width, channels)`, and integer
                labels of shape `(batch,)`.

        Returns:
            Means since the epoch began; those of the current phase are in `TRAINING_METRICS`.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        images = self.defended.preprocessor(images)
        self._unless(Phase.MASKER, lambda: self._train_classifier(images, labels))
        if self.defended.masker is not None:
            self._unless(Phase.CLASSIFIER, lambda: self._train_masker(images))
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def _train_classifier(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        def measure() -> tf.Tensor:
            loss = self._classification_loss(images, labels, training=True)
            return loss + self._kernel_penalty()

        return self._descend(self.optimizer, self.defended.classifier, measure)

    def _train_masker(self, images: tf.Tensor) -> tf.Tensor:
        def measure() -> tf.Tensor:
            return self._masker_loss(images, self._target_logits(images), training=True).total

        return self._descend(self.masker_optimizer, self.defended.masker, measure)

    def _unless(self, phase: Phase, step: Callable[[], tf.Tensor]) -> None:
        tf.cond(tf.equal(self.phase, int(phase)), lambda: tf.constant(0.0), step)

    def _descend(
        self,
        optimizer: keras.optimizers.Optimizer,
        part: keras.Model,
        measure: Callable[[], tf.Tensor],
    ) -> tf.Tensor:
        """Takes one step on `part`; returns the loss."""
        with tf.GradientTape() as tape:
            loss = measure()
            scaled_loss = optimizer.scale_loss(loss)
        variables = part.trainable_variables
        optimizer.apply(tape.gradient(scaled_loss, variables), variables)
        return loss

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures a batch of `(images, labels)`.

        Returns:
            Means since the evaluation began: `bare_accuracy` of F(x), `defended_accuracy` of
            F(T(G(x) * x)), the classification loss and, with a masker, what `MASKER_METRICS` names,
            measured as in training but in inference mode.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        bare_logits = self.defended.classifier(images, training=False)
        self._track_accuracy("bare_accuracy", bare_logits, labels)
        self._track_accuracy("defended_accuracy", self.defended(images), labels)
        images = self.defended.preprocessor(images)
        self._classification_loss(images, labels, training=False)
        measured = ["bare_accuracy", "defended_accuracy", "classification_loss"]
        if self.defended.masker is not None:
            self._masker_loss(images, self._target_logits(images), training=False)
            measured += MASKER_METRICS
        return {name: self.trackers[name].result() for name in measured}

    def _classification_loss(
        self, images: tf.Tensor, labels: tf.Tensor, *, training: bool
    ) -> tf.Tensor:
        """Returns the cross-entropy of F(x), x being pre-processed already."""
        logits = self.defended.classifier(images, training=training)
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        self.trackers["classification_loss"].update_state(losses)
        self._track_accuracy("accuracy", logits, labels)
        return tf.reduce_mean(losses)

    def _kernel_penalty(self) -> tf.Tensor:
        variables = self.defended.classifier.trainable_variables
        kernels = [variable for variable in variables if variable.name == "kernel"]
        return self.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])

    def _target_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Returns F(x), which the semantic loss compares with, x being pre-processed already."""
        return tf.stop_gradient(self.defended.classifier(images, training=False))

    def _masker_loss(
        self, images: tf.Tensor, target_logits: tf.Tensor, *, training: bool
    ) -> MaskerLoss:
        """Returns Eq. 2 for the images that are masked and the logits that those shall keep."""
        mask = self.defended.masker(images, training=training)
        masked_images = mask * images
        losses = masker_loss(
            images,
            masked_images,
            target_logits,
            self.defended.classifier(masked_images, training=False),
            LossWeights(self.sparsity_weight, self.semantic_weight, self.reconstruction_weight),
            self.loss_reduction,
        )
        measured = (*losses, tf.reduce_mean(mask), tf.math.reduce_std(mask))
        for name, value in zip(MASKER_METRICS, measured, strict=True):
            self.trackers[name].update_state(value, sample_weight=tf.shape(images)[0])
        return losses

    def _track_accuracy(self, name: str, logits: tf.Tensor, labels: tf.Tensor) -> None:
        correct = keras.metrics.sparse_categorical_accuracy(labels, logits)
        self.trackers[name].update_state(correct)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` rebuilds the trainer from."""
        return {
            "name": self.name,
            "defended": keras.saving.serialize_keras_object(self.defended),
            "sparsity_weight": self.sparsity_weight,
            "semantic_weight": self.semantic_weight,
            "reconstruction_weight": self.reconstruction_weight,
            "loss_reduction": self.loss_reduction,
            "weight_decay": self.weight_decay,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "SparseFeatureMaskerTrainer":
        """Rebuilds a trainer, without its weights, from what `get_config` returned."""
        defended = keras.saving.deserialize_keras_object(config["defended"], custom_objects)
        return cls(**{**config, "defended": defended})

    def get_compile_config(self) -> dict[str, Any]:
        """Returns both optimizers, which Keras would not save for a `compile` of our own."""
        return {
            "classifier_optimizer": keras.optimizers.serialize(self.optimizer),
            "masker_optimizer": None
            if self.masker_optimizer is None
            else keras.optimizers.serialize(self.masker_optimizer),
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with the optimizers that `get_compile_config` returned."""
        optimizers = {
            name: None if value is None else keras.optimizers.deserialize(value)
            for name, value in config.items()
        }
        self.compile(**optimizers)
