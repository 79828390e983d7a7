"""From records to a defended model and the model that attacks it: the work of the train stage."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from sfm_tf.artifacts import atomic_files
from sfm_tf.config import ModelConfig, TrainingConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import Schema, read_schema
from sfm_tf.training import model_files
from sfm_tf.training.batches import training_steps
from sfm_tf.training.blueprint import Blueprint, Seeds, read_channel_statistics
from sfm_tf.training.checkpoints import Checkpoints, History
from sfm_tf.training.fitting import Fitting, Split
from sfm_tf.training.losses import LossWeights, sparsity_ratio
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.optimizers import classifier_optimizer, masker_optimizer
from sfm_tf.training.plan import Epoch, count_classifier_passes, defence_plan, source_plan
from sfm_tf.training.precision import dtype_policy, resolve_precision
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer
from sfm_tf.training.step_watch import Progress


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    Attributes:
        history: For `defence` and `source`, per epoch its `stage` and the metrics of `training`
            and `validation`.
        warning: Says what to change if the mask collapsed; else empty.
    """

    history: dict[str, History]
    warning: str

    @property
    def validation(self) -> dict[str, float]:
        """Metrics of the defended model on the validation images after the last epoch."""
        return self.history["defence"][-1]["validation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Workplace:
    """What the trainings of the defence and of the source model share."""

    config: TrainingConfig
    settings: dict[str, Any]
    training: Split
    validation: Split
    folder: pathlib.Path
    progress: Progress

    def train(
        self, name: str, build: Callable[[], DefendedModel], plan: Sequence[Epoch], seed: int
    ) -> tuple[DefendedModel, History]:
        """Returns the model that `build` makes, trained, in float32, and its history."""
        with dtype_policy(resolve_precision(self.config.mixed_precision)):
            model = build()
        fitting = Fitting(
            trainer=self._compile_trainer(model, plan),
            plan=plan,
            config=self.config,
            training=self.training,
            validation=self.validation,
            seed=seed,
            checkpoints=Checkpoints(
                self.folder / model_files.CHECKPOINT_FOLDER / name, self.settings
            ),
            logs=self.folder / model_files.LOG_FOLDER / name,
            progress=self.progress,
        )
        history = fitting.run()
        # Layers remember their arithmetic: a model kept as trained in 16 bits would be served and
        # attacked in 16 bits, on any machine.
        with dtype_policy("float32"):
            portable = build()
        portable.set_weights(model.get_weights())
        return portable, history

    def _compile_trainer(
        self, model: DefendedModel, plan: Sequence[Epoch]
    ) -> SparseFeatureMaskerTrainer:
        config = self.config
        trainer = SparseFeatureMaskerTrainer(
            model,
            sparsity_weight=config.sparsity_weight,
            semantic_weight=config.semantic_weight,
            reconstruction_weight=config.reconstruction_weight,
            loss_reduction=config.loss_reduction,
            weight_decay=config.weight_decay,
        )
        steps = training_steps(len(self.training.labels), config.batch_size)
        trainer.compile(
            classifier_optimizer(config, steps * count_classifier_passes(plan)),
            None if model.masker is None else masker_optimizer(config),
        )
        return trainer


def train_defence(
    records: pathlib.Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> TrainingResult:
    """Trains classifier and masker by Algorithm 1, and an independent source model.

    Writes into `folder` the models (`classifier.keras`, `masker.keras`, `source.keras`), always in
    float32; `defence.json`, what `loading` needs beside them; `history.json`; checkpoints after
    each epoch; and TensorBoard logs. Called again with the same arguments after an interruption it
    goes on after the last epoch that was finished.

    Args:
        records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
        model_config: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of initial weights, order and augmentation.
        folder: Folder to write into, made if it does not exist.
        progress: Is told of each step.

    Returns:
        The history, and a warning if the mask collapsed.

    Raises:
        SfmError: If the records are damaged, the settings do not fit them or the checkpoints in
            `folder`, or a loss is no number.
    """
    schema = read_schema(records)
    seeds = Seeds.spawn(seed)
    blueprint = Blueprint(model_config, schema, read_channel_statistics(records), seeds)
    folder.mkdir(parents=True, exist_ok=True)
    workplace = _Workplace(
        config=config,
        settings=_settings(model_config, config, seed, schema),
        training=_load(records, "train", schema),
        validation=_load(records, "validation", schema),
        folder=folder,
        progress=progress,
    )
    _warn_of_ones(config, schema)
    defended, defence_history = workplace.train(
        "defence", blueprint.defended, defence_plan(config), seeds.order
    )
    source, source_history = workplace.train(
        "source", blueprint.source, source_plan(config), seeds.source_order
    )
    history = {"defence": defence_history, "source": source_history}
    model_files.save_models(folder, defended, source.classifier, schema.class_names)
    atomic_files.write_json(folder / model_files.HISTORY_FILE, history)
    return TrainingResult(history, describe_collapse(defence_history[-1]["validation"]))


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


def _warn_of_ones(config: TrainingConfig, schema: Schema) -> None:
    weights = LossWeights(
        config.sparsity_weight, config.semantic_weight, config.reconstruction_weight
    )
    ratio = sparsity_ratio(weights, schema.image_shape, config.loss_reduction, config.batch_size)
    if ratio <= 1.0:
        logging.warning(
            "sparsity_weight %g is %.2f of the least at which the loss is not smallest for a mask "
            "of ones; raise it or lower reconstruction_weight.",
            config.sparsity_weight,
            ratio,
        )
