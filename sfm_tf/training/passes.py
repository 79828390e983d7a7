"""Passes over images on one device or many: the loop that Keras' `fit` is for one."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from sfm_tf.training.batches import Shares
from sfm_tf.training.phases import Phase
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer

MakeBatches = Callable[[Shares], tf.data.Dataset]
"""From the shares of each batch that this process takes to its dataset."""


class Passes:
    """Runs a trainer's steps in its distribution strategy, each compiled once.

    `fit` of Keras 3 does not run on several workers (keras-team/keras issue 20585); a loop over
    `strategy.run` does, so this one serves one device, several and several workers.

    Args:
        trainer: Compiled, and made in the scope of the strategy.
        strategy: Joins the devices.
        jit_compile: Whether XLA compiles the steps.
    """

    def __init__(
        self,
        trainer: SparseFeatureMaskerTrainer,
        strategy: tf.distribute.Strategy,
        *,
        jit_compile: bool = False,
    ) -> None:
        """Compiles nothing yet."""
        self.trainer = trainer
        self.strategy = strategy
        self._compile = functools.partial(tf.function, autograph=False, jit_compile=jit_compile)
        self._training_steps: dict[tuple[Phase, bool], Callable] = {}
        self._test_step: Callable | None = None

    def train(self, make_batches: MakeBatches) -> Iterator[Mapping[str, Any]]:
        """Takes one training step per batch, of the trainer's phase.

        Args:
            make_batches: Makes the batches.

        Yields:
            After each step what `train_step` returned, scalars of the first replica, without
            waiting for them.
        """
        step = self._training_step()
        for batch in self.strategy.distribute_datasets_from_function(self._shared(make_batches)):
            yield step(batch)

    def evaluate(self, batches: tf.data.Dataset) -> dict[str, float]:
        """Returns the means of what `test_step` measures; every replica measures all images."""
        if self._test_step is None:
            self._test_step = self._compiled(self.trainer.test_step)
        self.reset()
        names: list[str] = []
        for batch in batches:
            names = list(self._test_step(batch))
        return {name: self.means()[name] for name in names}

    def means(self) -> dict[str, float]:
        """Returns the means of all trackers since the last reset, over all replicas."""
        return {name: float(metric.result()) for name, metric in self.trainer.trackers.items()}

    def reset(self) -> None:
        """Begins all means anew."""
        for metric in self.trainer.trackers.values():
            metric.reset_state()

    def _training_step(self) -> Callable:
        key = (self.trainer.phase, self.trainer.is_pretraining)
        if key not in self._training_steps:
            self._training_steps[key] = self._compiled(self.trainer.train_step)
        return self._training_steps[key]

    def _compiled(self, step: Callable) -> Callable:
        def run(batch: Any) -> dict[str, tf.Tensor]:
            measured = self.strategy.run(step, args=(batch,))
            return {
                name: self.strategy.experimental_local_results(value)[0]
                for name, value in measured.items()
            }

        # A partial, because TensorFlow counts compilations by the code of a function.
        return self._compile(functools.partial(run))

    def _shared(self, make_batches: MakeBatches) -> Callable:
        def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
            total = context.num_replicas_in_sync
            count = total // context.num_input_pipelines
            return make_batches(Shares(total, context.input_pipeline_id * count, count))

        return make
