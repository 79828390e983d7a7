"""From records to a defended model and the model that attacks it: the work of the train stage."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import Schema, read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training import model_files
from sfm_tf.training.adversarial_trainer import AdversarialTrainer, AdversarialTraining
from sfm_tf.training.batches import training_steps
from sfm_tf.training.checkpoints import Checkpoints, History, best_epoch
from sfm_tf.training.devices import check_shares, is_chief, open_strategy, synchronise_statistics
from sfm_tf.training.losses import WeightRatios, measure_ratios
from sfm_tf.training.model_building import (
    Blueprint,
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
    Epoch,
    Fitting,
    Passes,
    Progress,
    Split,
    adversarial_plan,
    count_classifier_passes,
    defence_plan,
    describe_collapse,
    source_plan,
)

_SECONDS = "seconds"


def split_seconds(history: History) -> tuple[History, dict[str, float]]:
    """Takes what was measured in seconds out of the history of one training.

    An epoch that was interrupted counts with its second, whole run alone. The first pass in each
    process includes the making of the graph.

    Args:
        history: As `fitting` returns it.

    Returns:
        The history without the seconds; and those of all passes over the training images by what
        was trained: `classifier`, `masker`, or `both` where they take turns at every step.
    """
    lasting = [{name: epoch[name] for name in epoch if name != _SECONDS} for epoch in history]
    measured = [epoch[_SECONDS] for epoch in history]
    phases = [phase.name.lower() for phase in Phase]
    sums = {phase: sum(seconds.get(phase, 0.0) for seconds in measured) for phase in phases}
    return lasting, {phase: round(value, 3) for phase, value in sums.items() if value}


def defence_timing(defence: Mapping[str, float], source: Mapping[str, float]) -> dict[str, float]:
    """Returns the content of `timing.json`: seconds of the parts of the train stage.

    Args:
        defence: Of classifier and masker, as `split_seconds` returns them.
        source: Of the independent model.

    Returns:
        `classifier_seconds`, `masker_seconds` and `source_seconds`; for an alternation by steps
        also `both_seconds`, of classifier and masker together.
    """
    timing = {"classifier": 0.0, "masker": 0.0, **defence, "source": sum(source.values())}
    return {f"{part}_seconds": value for part, value in timing.items()}


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


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    Attributes:
        history: For `defence` and `source`, per epoch its `stage` and the metrics of `training`
            and `validation`.
        validation: Metrics of the defended model that was kept on the validation images.
        warning: Says what to change if its mask collapsed; else empty.
    """

    history: dict[str, History]
    validation: dict[str, float]
    warning: str


def train_defence(
    records: pathlib.Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
    execution: TrainingExecutionConfig | None = None,
) -> TrainingResult:
    """Trains classifier and masker by Algorithm 1, and an independent source model.

    Writes into `folder` the models (`classifier.keras`, `masker.keras`, `source.keras`), always in
    float32; `defence.json`, what `loading` needs beside them; `history.json`; `loss_weights.json`,
    the weights of Eq. 2 with their ratios; `timing.json`, the seconds that each part took;
    checkpoints; and TensorBoard logs. Called again with the same arguments after an interruption it
    goes on after the last checkpoint, to the same weights.

    Args:
        records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
        model_config: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of initial weights, order and augmentation.
        folder: Folder to write into, made if it does not exist. Of several workers the first writes
            and all read.
        progress: Is told of each step.
        execution: Where training runs, and what it keeps and shows; None for the defaults.

    Returns:
        The history, and a warning if the mask collapsed.

    Raises:
        SfmError: If the records are damaged, the settings do not fit them, the devices or the
            checkpoints in `folder`, or a loss is no number.
    """
    workplace = Workplace.open(records, model_config, config, seed, folder, progress, execution)
    blueprint, seeds = workplace.blueprint, workplace.blueprint.seeds
    ratios = measure_ratios(config, workplace.training.images)
    if warning := ratios.warning():
        logging.warning(warning)
    defended, defence_history = workplace.train(
        "defence", blueprint.defended, defence_plan(config, ratios.first_share), seeds.order
    )
    source, source_history = workplace.train(
        "source", blueprint.source, source_plan(config), seeds.source_order
    )
    history = {"defence": defence_history, "source": source_history}
    if workplace.is_writer:
        model_files.save_models(folder, defended, source.classifier, blueprint.schema.class_names)
        _write_figures(folder, history, ratios)
    kept = best_epoch(defence_history) if config.kept_epoch == "best" else -1
    validation = defence_history[kept]["validation"]
    lasting = {name: split_seconds(epochs)[0] for name, epochs in history.items()}
    return TrainingResult(lasting, validation, describe_collapse(validation, config.semantic_loss))


def _write_figures(folder: pathlib.Path, history: dict[str, History], ratios: WeightRatios) -> None:
    """Writes what there is to say of a training beside its models."""
    lasting, seconds = {}, {}
    for name, epochs in history.items():
        lasting[name], seconds[name] = split_seconds(epochs)
    atomic_files.write_json(folder / model_files.HISTORY_FILE, lasting)
    timing = defence_timing(seconds["defence"], seconds["source"])
    atomic_files.write_json(folder / model_files.TIMING_FILE, timing)
    atomic_files.write_json(folder / model_files.LOSS_WEIGHTS_FILE, dataclasses.asdict(ratios))


@dataclasses.dataclass(frozen=True)
class AdversarialTrainingResult:
    """What adversarial training came to.

    Attributes:
        history: For `adversarial_training` and `sfm_adversarial_training`, per epoch its `stage`
            and the metrics of `training` and `validation`.
        warning: Says what to change if the mask collapsed; else empty.
    """

    history: dict[str, History]
    warning: str


def train_on_adversarial_images(
    records: pathlib.Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
    execution: TrainingExecutionConfig | None = None,
) -> AdversarialTrainingResult:
    """Trains a classifier alone, then classifier and masker, by the method that `config` names.

    Both begin with the weights, the order of the images and the pre-training of the ordinary
    training of this seed. Writes into `folder` the models (`adversarial_classifier.keras`,
    `adversarial_sfm_classifier.keras`, `adversarial_sfm_masker.keras`), always in float32;
    `defence.json`, what `loading` needs beside them, and method and radius; `history.json`;
    `timing.json`, the seconds that each part took; checkpoints; and TensorBoard logs. Called again
    with the same arguments after an interruption it goes on after the last checkpoint.

    Args:
        records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
        model_config: Architectures, and the pre-processing of the model with the masker.
        config: How they are trained; not with `none` for `adversarial_training`.
        seed: Seed of initial weights, order, augmentation and attack.
        folder: Folder to write into, made if it does not exist.
        progress: Is told of each step.
        execution: Where training runs, and what it keeps and shows; None for the defaults.

    Returns:
        The history, and a warning if the mask collapsed.

    Raises:
        SfmError: If the method is none, the records are damaged, the settings do not fit them or
            the checkpoints in `folder`, or a loss is no number.
    """
    adversarial = AdversarialTraining.of(config)
    workplace = Workplace.open(records, model_config, config, seed, folder, progress, execution)
    blueprint = workplace.blueprint
    bare, bare_history = _train(workplace, ADVERSARIAL_TRAINING, blueprint.bare, adversarial)
    defended, history = _train(workplace, SFM_ADVERSARIAL_TRAINING, blueprint.defended, adversarial)
    described = {**dataclasses.asdict(adversarial), "epochs": config.adversarial_epochs}
    class_names = blueprint.schema.class_names
    histories = {ADVERSARIAL_TRAINING: bare_history, SFM_ADVERSARIAL_TRAINING: history}
    if workplace.is_writer:
        model_files.save_adversarial_models(
            folder, bare.classifier, defended, class_names, described
        )
        _write_histories(folder, histories)
    lasting = {name: split_seconds(epochs)[0] for name, epochs in histories.items()}
    kept = best_epoch(history) if config.kept_epoch == "best" else -1
    warning = describe_collapse(history[kept]["validation"], config.semantic_loss)
    return AdversarialTrainingResult(lasting, warning)


def _train(
    workplace: Workplace,
    name: str,
    build: Callable[[], DefendedModel],
    adversarial: AdversarialTraining,
) -> tuple[DefendedModel, History]:
    config, seeds = workplace.config, workplace.blueprint.seeds
    make_trainer = functools.partial(
        AdversarialTrainer,
        adversarial=adversarial,
        seed=seeds.attack,
    )
    plan = adversarial_plan(config, has_masker=name == SFM_ADVERSARIAL_TRAINING)
    return workplace.train(name, build, plan, seeds.order, make_trainer)


def _write_histories(folder: pathlib.Path, histories: dict[str, History]) -> None:
    """Writes them, the seconds into a file of their own."""
    split = {name: split_seconds(history) for name, history in histories.items()}
    lasting = {name: history for name, (history, _) in split.items()}
    timing = {
        name: {f"{part}_seconds": value for part, value in seconds.items()}
        for name, (_, seconds) in split.items()
    }
    atomic_files.write_json(folder / model_files.HISTORY_FILE, lasting)
    atomic_files.write_json(folder / model_files.TIMING_FILE, timing)
