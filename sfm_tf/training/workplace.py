"""What the trainings of one stage share: data, settings, and how a model is trained and kept."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import Schema, read_schema
from sfm_tf.training import model_files
from sfm_tf.training.batches import training_steps
from sfm_tf.training.blueprint import Blueprint, Seeds, read_channel_statistics
from sfm_tf.training.checkpoints import Checkpoints, History
from sfm_tf.training.devices import check_shares, is_chief, open_strategy, synchronise_statistics
from sfm_tf.training.fitting import Fitting, Split
from sfm_tf.training.optimizers import classifier_optimizer, masker_optimizer
from sfm_tf.training.passes import Passes
from sfm_tf.training.plan import Epoch, count_classifier_passes
from sfm_tf.training.precision import dtype_policy, resolve_precision
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer
from sfm_tf.training.step_watch import Progress
from sfm_tf.training.training_logs import TrainingLogs
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig

_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)

MakeTrainer = Callable[..., SparseFeatureMaskerTrainer]
"""From a model and the keyword arguments of `SparseFeatureMaskerTrainer` to its trainer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where models are trained one after the other on the same images.

    Attributes:
        blueprint: Builds them.
        config: How they are trained.
        settings: What determines their training, as JSON values, see `Checkpoints`.
        training: Images to train on.
        validation: Images to measure on after each epoch.
        folder: Where checkpoints and logs are.
        progress: Is told of each step.
        execution: Where it runs, and what it keeps and shows.
        strategy: Joins the devices.
    """

    blueprint: Blueprint
    config: TrainingConfig
    settings: dict[str, Any]
    training: Split
    validation: Split
    folder: pathlib.Path
    progress: Progress
    execution: TrainingExecutionConfig
    strategy: tf.distribute.Strategy

    @classmethod
    def open(
        cls,
        records: pathlib.Path,
        model_config: ModelConfig,
        config: TrainingConfig,
        seed: int,
        folder: pathlib.Path,
        progress: Progress,
        execution: TrainingExecutionConfig | None = None,
    ) -> "Workplace":
        """Joins the devices, reads the images and makes the folder.

        Args:
            records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
            model_config: Architectures and pre-processing.
            config: How the models are trained.
            seed: Seed of initial weights, order and augmentation.
            folder: Folder to write into, made if it does not exist.
            progress: Is told of each step.
            execution: Where training runs, and what it keeps and shows; None for the defaults.

        Raises:
            SfmError: If the records are damaged, or the devices cannot be joined or cannot share a
                batch.
        """
        execution = TrainingExecutionConfig() if execution is None else execution
        strategy = open_strategy(execution.strategy)
        check_shares(strategy, config)
        schema = read_schema(records)
        statistics = read_channel_statistics(records)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            blueprint=Blueprint(model_config, schema, statistics, Seeds.spawn(seed)),
            config=config,
            settings=_settings(model_config, config, seed, schema),
            training=_load(records, "train", schema),
            validation=_load(records, "validation", schema),
            folder=folder,
            progress=progress,
            execution=execution,
            strategy=strategy,
        )

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files: of several workers one does."""
        return is_chief(self.execution.strategy)

    @property
    def steps_per_pass(self) -> int:
        """Steps of one pass over the training images."""
        return training_steps(len(self.training.labels), self.config.batch_size)

    def train(
        self,
        name: str,
        build: Callable[[], DefendedModel],
        plan: Sequence[Epoch],
        seed: int,
        make_trainer: MakeTrainer = SparseFeatureMaskerTrainer,
    ) -> tuple[DefendedModel, History]:
        """Trains one model from its latest checkpoint, or the start, to the end of its plan.

        Args:
            name: Name of its folders of checkpoints and of logs.
            build: Makes it, under Keras' current dtype policy.
            plan: Its epochs.
            seed: Of order and augmentation of the images.
            make_trainer: Makes its trainer.

        Returns:
            The trained model, in float32, and its history.

        Raises:
            SfmError: If the checkpoints are of another training, or a loss is no number.
        """
        with self.strategy.scope(), dtype_policy(resolve_precision(self.config.mixed_precision)):
            model = build()
            trainer = self._compile_trainer(model, plan, make_trainer)
        fitting = Fitting(
            passes=Passes(trainer, self.strategy, jit_compile=self.config.jit_compile),
            plan=tuple(plan),
            config=self.config,
            execution=self.execution,
            training=self.training,
            validation=self.validation,
            seed=seed,
            checkpoints=self._checkpoints(name),
            logs=self._logs(name),
            progress=self.progress,
        )
        history = self._run(fitting)
        # Layers remember their arithmetic: a model kept as trained in 16 bits would be served and
        # attacked in 16 bits, on any machine.
        with dtype_policy("float32"):
            portable = build()
        portable.set_weights(model.get_weights())
        return portable, history

    def _run(self, fitting: Fitting) -> History:
        if self.execution.strategy != "multi_worker":
            return fitting.run()
        try:
            return fitting.run()
        except _LOST_WORKER as error:
            raise SfmError(
                f"Another worker does not answer ({str(error).splitlines()[0]}); start all workers "
                "again, and training goes on from the last checkpoint."
            ) from error

    def _checkpoints(self, name: str) -> Checkpoints:
        return Checkpoints(
            self.folder / model_files.CHECKPOINT_FOLDER / name,
            self.settings,
            self.execution.keep_checkpoints,
            self.is_writer,
        )

    def _logs(self, name: str) -> TrainingLogs:
        folder = self.folder / model_files.LOG_FOLDER / name
        return TrainingLogs(folder if self.is_writer else None, self.execution.profile_steps)

    def _compile_trainer(
        self, model: DefendedModel, plan: Sequence[Epoch], make_trainer: MakeTrainer
    ) -> SparseFeatureMaskerTrainer:
        config = self.config
        trainer = make_trainer(
            model,
            sparsity_weight=config.sparsity_weight,
            semantic_weight=config.semantic_weight,
            reconstruction_weight=config.reconstruction_weight,
            loss_reduction=config.loss_reduction,
            weight_decay=config.weight_decay,
            semantic_loss=config.semantic_loss,
            target_statistics=config.target_statistics,
            preprocess_training=config.preprocess_training,
        )
        replicas = self.strategy.num_replicas_in_sync
        if replicas > 1:
            synchronise_statistics(model)
        steps = self.steps_per_pass * count_classifier_passes(plan)
        trainer.compile(
            classifier_optimizer(config, steps),
            None if model.masker is None else masker_optimizer(config, replicas),
        )
        return trainer


def _load(records: pathlib.Path, split: str, schema: Schema) -> Split:
    images, labels = load_split(records, split, schema)
    with tf.device("/CPU:0"):
        return Split(tf.convert_to_tensor(images), tf.convert_to_tensor(labels))


def _settings(
    model_config: ModelConfig, config: TrainingConfig, seed: int, schema: Schema
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(model_config),
        **dataclasses.asdict(config),
        "seed": seed,
        "schema": dataclasses.asdict(schema),
    }
