"""Algorithm 1 of Yu et al. 2022 as a Keras training step with two optimizers."""

import dataclasses
import enum
from typing import Any

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.losses import SEMANTIC_LOSSES, LossWeights, MaskerLoss, masker_loss
from sfm_tf.training.settings import TrainingConfig


class Phase(enum.IntEnum):
    """Which part a training step updates.

    `BOTH` updates the classifier, then the masker on the same images.
    """

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
"""Metrics that a training step updates in each phase; the others stay 0."""


@keras.saving.register_keras_serializable(package="sfm_tf")
class SparseFeatureMaskerTrainer(keras.Model):
    """Trains classifier F and masker G of a `DefendedModel` in turn (Algorithm 1).

    Algorithm 1 writes M(x) for the masked image G(x) * x. Set `phase` before a step: a compiled
    step belongs to one phase. While one part is trained, the other is frozen, including the
    averages of its batch statistics.

    In a distribution strategy the replicas get equal parts of each batch, and the weights become
    those that one device would learn from the whole batch.

    Args:
        defended: Holds classifier F, masker G and pre-processing T. Without a masker only the
            classifier can be trained, as for an independent source model.
        config: Weights of the losses, and what they are computed from.
        **options: Further arguments of `keras.Model`.
    """

    def __init__(self, defended: DefendedModel, config: TrainingConfig, **options: Any) -> None:
        """Keeps the parts; they are shared with the caller, not copied."""
        super().__init__(**{**options, "dtype": "float32"})
        self.defended = defended
        self.config = config
        self.is_pretraining = False
        self._phase = Phase.CLASSIFIER
        self.sparsity_share = self.add_weight(
            name="sparsity_share", shape=(), initializer="ones", trainable=False
        )
        names = (*CLASSIFIER_METRICS, *MASKER_METRICS, "bare_accuracy", "defended_accuracy")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.built = True

    @property
    def phase(self) -> Phase:
        """Which part a step updates."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self.train_function = None  # Of `fit`: its compiled step belongs to one phase too.

    def build(self, input_shape: Any) -> None:
        """Does nothing, because the parts are built already."""

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
            classifier_optimizer: Updates the classifier; it becomes `trainer.optimizer`.
            masker_optimizer: Updates the masker; None where there is none.

        Raises:
            SfmError: If there is a masker without an optimizer or the reverse.
        """
        if (self.defended.masker is None) != (masker_optimizer is None):
            raise SfmError("Give both a masker and a masker_optimizer, or neither.")
        # No XLA: it has no kernel for parts of T, and on CPUs it costs more time than it saves.
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

    @property
    def state(self) -> list[keras.Variable]:
        """Everything that training changes: weights, state of the optimizers, means so far."""
        optimizers = [self.optimizer, self.masker_optimizer]
        variables = [optimizer.variables for optimizer in optimizers if optimizer is not None]
        means = [metric.variables for metric in self.trackers.values()]
        return [*self.weights, *sum(variables + means, [])]

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step of Algorithm 1 on a batch of `(images, labels)`.

        Args:
            data: Float32 images in [0, 1] of shape `(batch, height, width, channels)`, and integer
                labels of shape `(batch,)`.

        Returns:
            Means since the epoch began; those of the current phase are in `TRAINING_METRICS`.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        images = self._preprocessed(images)  # x = T(x)
        if self.phase != Phase.MASKER:
            self._train_classifier(images, labels)
        if self.phase != Phase.CLASSIFIER and self.defended.masker is not None:
            # Not the logits of the classifier's own step: F(x) and F(M(x)) are to have the same
            # weights and kind of statistics, so that a mask of ones has no semantic loss.
            self._train_masker(images, self._frozen_logits(images), labels)
        return self._measured()

    def _train_classifier(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Updates F by descending L_c."""
        with tf.GradientTape() as tape:
            logits = self.defended.classifier(images, training=True)
            loss = self._classification_loss(logits, labels) + self._kernel_penalty()
            loss = self.optimizer.scale_loss(loss)
        self._descend(self.optimizer, self.defended.classifier, tape, loss)

    def _train_masker(self, images: tf.Tensor, target_logits: tf.Tensor, labels: tf.Tensor) -> None:
        """Updates M by descending L_mask, which compares F(M(x)) with the target logits F(x)."""
        with tf.GradientTape() as tape:
            loss = self._masker_loss(images, target_logits, labels, training=True).total
            loss = self.masker_optimizer.scale_loss(loss)
        self._descend(self.masker_optimizer, self.defended.masker, tape, loss)

    def _masker_loss(
        self, images: tf.Tensor, target_logits: tf.Tensor, labels: tf.Tensor, *, training: bool
    ) -> MaskerLoss:
        """Returns L_mask = w1 L_sp + w2 L_seg + w3 L_recon (Eq. 2) for M(x) = G(x) * x."""
        mask = self.defended.masker(images, training=training)
        masked_images = mask * images
        classify = self._frozen_logits if training else self.defended.classifier
        masked_logits = classify(masked_images)
        losses = masker_loss(
            images,
            masked_images,
            SEMANTIC_LOSSES[self.config.semantic_loss](target_logits, masked_logits, labels),
            LossWeights(
                self.config.sparsity_weight * tf.convert_to_tensor(self.sparsity_share),
                self.config.semantic_weight,
                self.config.reconstruction_weight,
            ),
            self.config.loss_reduction,
        )
        measured = (*losses, tf.reduce_mean(mask), tf.math.reduce_std(mask))
        for name, value in zip(MASKER_METRICS, measured, strict=True):
            self.trackers[name].update_state(value, sample_weight=tf.shape(images)[0])
        return losses

    def _frozen_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Returns F(x) of either side of Eq. 4; the averages of its statistics stay."""
        classifier = self.defended.classifier
        if self.config.target_statistics == "moving":
            return classifier(images, training=False)
        parameters = (classifier.trainable_variables, classifier.non_trainable_variables)
        logits, _ = classifier.stateless_call(*parameters, images, training=True)
        return logits

    def _descend(
        self,
        optimizer: keras.optimizers.Optimizer,
        part: keras.Model,
        tape: tf.GradientTape,
        scaled_loss: tf.Tensor,
    ) -> None:
        """Takes one step on `part`, against the mean of all replicas' gradients."""
        variables = part.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            # Clipping has to see the whole batch's gradient, and Keras will sum over replicas.
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
            gradients = [gradient / replicas for gradient in gradients]
        optimizer.apply(gradients, variables)

    def _preprocessed(self, images: tf.Tensor) -> tf.Tensor:
        return self.defended.preprocessor(images) if self.config.preprocess_training else images

    def _measured(self) -> dict[str, tf.Tensor]:
        return {name: self.trackers[name].result() for name in TRAINING_METRICS[self.phase]}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures a batch of `(images, labels)`.

        Returns:
            Means since the evaluation began: `bare_accuracy` of F(x), `defended_accuracy` of
            F(T(G(x) * x)), the classification loss and, with a masker, `MASKER_METRICS`. They are
            measured as in training, but in inference mode.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        bare_logits = self.defended.classifier(images, training=False)
        self._track_accuracy("bare_accuracy", bare_logits, labels)
        self._track_accuracy("defended_accuracy", self.defended(images), labels)
        images = self._preprocessed(images)
        target_logits = self.defended.classifier(images, training=False)
        self._classification_loss(target_logits, labels)
        measured = ["bare_accuracy", "defended_accuracy", "classification_loss"]
        if self.defended.masker is not None:
            self._masker_loss(images, target_logits, labels, training=False)
            measured += MASKER_METRICS
        return {name: self.trackers[name].result() for name in measured}

    def _classification_loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        self.trackers["classification_loss"].update_state(losses)
        self._track_accuracy("accuracy", logits, labels)
        return tf.reduce_mean(losses)

    def _kernel_penalty(self) -> tf.Tensor:
        variables = self.defended.classifier.trainable_variables
        kernels = [variable for variable in variables if variable.name == "kernel"]
        return self.config.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])

    def _track_accuracy(self, name: str, logits: tf.Tensor, labels: tf.Tensor) -> None:
        correct = keras.metrics.sparse_categorical_accuracy(labels, logits)
        self.trackers[name].update_state(correct)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` rebuilds the trainer from."""
        return {
            "name": self.name,
            "defended": keras.saving.serialize_keras_object(self.defended),
            "config": dataclasses.asdict(self.config),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "SparseFeatureMaskerTrainer":
        """Rebuilds a trainer, without its weights, from what `get_config` returned."""
        defended = keras.saving.deserialize_keras_object(config["defended"], custom_objects)
        settings = TrainingConfig(**config["config"])
        return cls(**{**config, "defended": defended, "config": settings})

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
