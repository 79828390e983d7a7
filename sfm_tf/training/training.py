"""From records to a defended model and the model that attacks it: the work of the train stage."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.progress import Progress
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.settings import ModelConfig
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.records.schema import Schema, read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.settings import PIXEL_LEVELS
from sfm_tf.training import model_files
from sfm_tf.training.adversarial_trainer import AdversarialTrainer
from sfm_tf.training.batches import training_steps
from sfm_tf.training.checkpoints import Checkpoints, History, best_epoch
from sfm_tf.training.devices import check_devices, is_chief, open_strategy, synchronise_statistics
from sfm_tf.training.losses import measure_ratios
from sfm_tf.training.model_building import (
    ModelFactory,
    Seeds,
    classifier_optimizer,
    dtype_policy,
    masker_optimizer,
    read_channel_statistics,
    resolve_precision,
)
from sfm_tf.training.model_files import ADVERSARIAL_TRAINING, SFM_ADVERSARIAL_TRAINING
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training_logs import TrainingLogs
from sfm_tf.training.training_loop import (
    CompiledSteps,
    Epoch,
    Split,
    TrainingLoop,
    adversarial_schedule,
    count_classifier_passes,
    defence_schedule,
    describe_collapse,
    source_schedule,
)

_SECONDS = "seconds"

_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)

MakeTrainer = Callable[[DefendedModel, TrainingConfig], SparseFeatureMaskerTrainer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """Trains models one after the other on the same images and devices.

    Attributes:
        factory: Builds the models.
        config: How they are trained.
        settings: All settings that the weights depend on, as JSON values, see `Checkpoints`.
        training: Images to train on.
        validation: Images to measure on after each epoch.
        folder: Folder of checkpoints, logs and models.
        progress: Called after each step.
        execution: Where it runs, and what it keeps and shows.
        strategy: Distributes the batches over the devices.
    """

    factory: ModelFactory
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
    ) -> "TrainingSession":
        """Joins the devices, reads the images and makes the folder.

        Args:
            records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
            model_config: Architectures and pre-processing.
            config: How the models are trained.
            seed: Seed of initial weights, order and augmentation.
            folder: Folder to write into, made if it does not exist. Of several workers the first
                writes and all read.
            progress: Called after each step.
            execution: Where training runs, and what it keeps and shows; None for the defaults.

        Raises:
            SfmError: If the records are damaged, the devices cannot be joined or cannot split a
                batch, or XLA is asked for with a pre-processing that draws.
        """
        execution = TrainingExecutionConfig() if execution is None else execution
        strategy = open_strategy(execution.strategy)
        check_devices(strategy, config)
        preprocessor = model_config.preprocessor
        if config.jit_compile and parse_preprocessor(preprocessor).is_random:
            raise SfmError(
                f"XLA (jit_compile) cannot compile the hash that {preprocessor} draws from; remove "
                "jit_compile or choose a preprocessor that draws nothing."
            )
        schema = read_schema(records)
        statistics = read_channel_statistics(records)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            factory=ModelFactory(model_config, schema, statistics, Seeds.spawn(seed)),
            config=config,
            settings={
                **dataclasses.asdict(model_config),
                **dataclasses.asdict(config),
                "seed": seed,
                "schema": dataclasses.asdict(schema),
            },
            training=_load(records, "train", schema),
            validation=_load(records, "validation", schema),
            folder=folder,
            progress=progress,
            execution=execution,
            strategy=strategy,
        )

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files: of several workers only the first does."""
        return is_chief(self.execution.strategy)

    def train(
        self,
        name: str,
        build: Callable[[], DefendedModel],
        schedule: Sequence[Epoch],
        seed: int,
        make_trainer: MakeTrainer = SparseFeatureMaskerTrainer,
    ) -> tuple[DefendedModel, History]:
        """Trains one model from its latest checkpoint, or the start, to the end of its schedule.

        Args:
            name: Name of its folders of checkpoints and of logs.
            build: Makes the model under Keras' current dtype policy.
            schedule: Its epochs.
            seed: Seed of order and augmentation of the images.
            make_trainer: Makes its trainer.

        Returns:
            The trained model, in float32, and its history.

        Raises:
            SfmError: If the checkpoints belong to another training, or a loss is not finite.
        """
        with self.strategy.scope(), dtype_policy(resolve_precision(self.config.mixed_precision)):
            model = build()
            trainer = self._compile_trainer(model, schedule, make_trainer)
        history = self._run(name, trainer, schedule, seed)
        # Layers remember their precision: a model kept as trained in 16 bits would be served and
        # attacked in 16 bits, on any machine.
        with dtype_policy("float32"):
            portable = build()
        portable.set_weights(model.get_weights())
        return portable, history

    def _compile_trainer(
        self, model: DefendedModel, schedule: Sequence[Epoch], make_trainer: MakeTrainer
    ) -> SparseFeatureMaskerTrainer:
        config = self.config
        trainer = make_trainer(model, config)
        replicas = self.strategy.num_replicas_in_sync
        if replicas > 1:
            synchronise_statistics(model)
        steps_per_pass = training_steps(len(self.training.labels), config.batch_size)
        trainer.compile(
            classifier_optimizer(config, steps_per_pass * count_classifier_passes(schedule)),
            None if model.masker is None else masker_optimizer(config, replicas),
        )
        return trainer

    def _run(
        self, name: str, trainer: SparseFeatureMaskerTrainer, schedule: Sequence[Epoch], seed: int
    ) -> History:
        logs = self.folder / model_files.LOG_FOLDER / name if self.is_writer else None
        loop = TrainingLoop(
            steps=CompiledSteps(trainer, self.strategy, jit_compile=self.config.jit_compile),
            schedule=tuple(schedule),
            config=self.config,
            execution=self.execution,
            training=self.training,
            validation=self.validation,
            seed=seed,
            checkpoints=Checkpoints(
                self.folder / model_files.CHECKPOINT_FOLDER / name,
                self.settings,
                self.execution.keep_checkpoints,
                self.is_writer,
            ),
            logs=TrainingLogs(logs, self.execution.profile_steps),
            progress=self.progress,
        )
        try:
            return loop.run()
        except _LOST_WORKER as error:
            if self.execution.strategy != "multi_worker":
                raise
            raise SfmError(
                f"Another worker does not answer ({str(error).splitlines()[0]}); start all workers "
                "again, and training continues from the last checkpoint."
            ) from error


def _load(records: pathlib.Path, split: str, schema: Schema) -> Split:
    images, labels = load_split(records, split, schema)
    with tf.device("/CPU:0"):
        return Split(tf.convert_to_tensor(images), tf.convert_to_tensor(labels))


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training.

    Attributes:
        history: By the name of each trained model, per epoch its `stage` and the metrics of
            `training` and `validation`.
        warning: What to change if the mask collapsed; else empty.
    """

    history: dict[str, History]
    warning: str


def train_defence(session: TrainingSession) -> TrainingResult:
    """Trains classifier and masker by Algorithm 1 (`defence`), and an independent `source` model.

    Writes into the session's folder the models (`classifier.keras`, `masker.keras`,
    `source.keras`), always in float32; `defence.json`, what `load_defended_model` needs beside
    them; `history.json`; `loss_weights.json`, the weights of Eq. 2 with their ratios;
    `timing.json`, the seconds of each part; checkpoints; and TensorBoard logs. Called again after
    an interruption, it continues from the last checkpoint, to the same weights.

    Raises:
        SfmError: If the settings do not fit the records or the checkpoints in the folder, or a loss
            is not finite.
    """
    config, factory, seeds = session.config, session.factory, session.factory.seeds
    ratios = measure_ratios(config, session.training.images)
    if warning := ratios.warning():
        logging.warning(warning)
    schedule = defence_schedule(config, ratios.first_share)
    defended, history = session.train("defence", factory.defended, schedule, seeds.order)
    source, source_history = session.train(
        "source", factory.source, source_schedule(config), seeds.source_order
    )
    histories, seconds = split_seconds({"defence": history, "source": source_history})
    if session.is_writer:
        folder, class_names = session.folder, factory.schema.class_names
        model_files.save_models(folder, defended, source.classifier, class_names)
        write_json(folder / model_files.HISTORY_FILE, histories)
        write_json(folder / model_files.TIMING_FILE, defence_timing(**seconds))
        write_json(folder / model_files.LOSS_WEIGHTS_FILE, dataclasses.asdict(ratios))
    return TrainingResult(histories, collapse_warning(history, config))


def train_on_adversarial_images(session: TrainingSession) -> TrainingResult:
    """Trains a classifier alone, then classifier and masker, by the method in the settings.

    They are `adversarial_training` and `sfm_adversarial_training`. Both have the initial weights,
    the order of the images and the pre-training of the ordinary training of this seed. Writes into
    the session's folder the models (`adversarial_classifier.keras`,
    `adversarial_sfm_classifier.keras`, `adversarial_sfm_masker.keras`), always in float32;
    `defence.json`, what `load_adversarial_models` needs beside them, with method and radius;
    `history.json`; `timing.json`, the seconds of each part; checkpoints; and TensorBoard logs.
    Called again after an interruption, it continues from the last checkpoint.

    Raises:
        SfmError: If the method is `none`, the settings do not fit the records or the checkpoints in
            the folder, or a loss is not finite.
    """
    config, factory, seeds = session.config, session.factory, session.factory.seeds
    make_trainer = functools.partial(AdversarialTrainer, seed=seeds.attack)
    schedules = [adversarial_schedule(config, has_masker=masked) for masked in (False, True)]
    bare, bare_history = session.train(
        ADVERSARIAL_TRAINING, factory.bare, schedules[0], seeds.order, make_trainer
    )
    defended, history = session.train(
        SFM_ADVERSARIAL_TRAINING, factory.defended, schedules[1], seeds.order, make_trainer
    )
    histories, seconds = split_seconds(
        {ADVERSARIAL_TRAINING: bare_history, SFM_ADVERSARIAL_TRAINING: history}
    )
    if session.is_writer:
        described = {
            "method": config.adversarial_training,
            "epsilon": config.adversarial_epsilon / PIXEL_LEVELS,
            "step_size": config.adversarial_step_size / PIXEL_LEVELS,
            "iterations": config.adversarial_iterations,
            "beta": config.trades_beta,
            "epochs": config.adversarial_epochs,
        }
        model_files.save_adversarial_models(
            session.folder, bare.classifier, defended, factory.schema.class_names, described
        )
        write_json(session.folder / model_files.HISTORY_FILE, histories)
        timing = {name: _with_unit(parts) for name, parts in seconds.items()}
        write_json(session.folder / model_files.TIMING_FILE, timing)
    return TrainingResult(histories, collapse_warning(history, config))


def kept_validation(history: History, config: TrainingConfig) -> dict[str, float]:
    """Returns the validation metrics of the epoch whose models `config.kept_epoch` keeps."""
    return history[best_epoch(history) if config.kept_epoch == "best" else -1]["validation"]


def collapse_warning(history: History, config: TrainingConfig) -> str:
    """Returns what to change if the mask that was kept collapsed; else nothing."""
    return describe_collapse(kept_validation(history, config), config.semantic_loss)


def split_seconds(
    histories: Mapping[str, History],
) -> tuple[dict[str, History], dict[str, dict[str, float]]]:
    """Separates the measured seconds from the histories of some trainings.

    Time that an interrupted training spent after its last checkpoint is not counted. The first pass
    in each process includes the tracing of the graph.

    Args:
        histories: By name, what `TrainingLoop.run` returned.

    Returns:
        By name the history without seconds; and by name the seconds of all passes over the training
        images, by what was trained: `classifier`, `masker`, or `both` where they take turns at
        every step.
    """
    lasting, seconds = {}, {}
    for name, history in histories.items():
        lasting[name] = [
            {key: value for key, value in epoch.items() if key != _SECONDS} for epoch in history
        ]
        sums = {
            phase: sum(epoch[_SECONDS].get(phase, 0.0) for epoch in history)
            for phase in (phase.name.lower() for phase in Phase)
        }
        seconds[name] = {phase: round(value, 3) for phase, value in sums.items() if value}
    return lasting, seconds


def defence_timing(defence: Mapping[str, float], source: Mapping[str, float]) -> dict[str, float]:
    """Returns the content of `timing.json`: seconds of the parts of the train stage.

    Args:
        defence: Seconds of classifier and masker, from `split_seconds`.
        source: Seconds of the independent model.

    Returns:
        `classifier_seconds`, `masker_seconds` and `source_seconds`; for an alternation by steps
        also `both_seconds`, of classifier and masker together.
    """
    return _with_unit({"classifier": 0.0, "masker": 0.0, **defence, "source": sum(source.values())})


def _with_unit(seconds: Mapping[str, float]) -> dict[str, float]:
    return {f"{part}_seconds": value for part, value in seconds.items()}
