"""Adversarial training of a classifier alone, and of one together with a masker.

It is what ordinary training is compared with; see `adversarial_trainer` for the methods.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from sfm_tf.artifacts import atomic_files
from sfm_tf.config import ModelConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training import model_files
from sfm_tf.training.adversarial_trainer import AdversarialTrainer, AdversarialTraining
from sfm_tf.training.checkpoints import History, best_epoch
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.model_files import ADVERSARIAL_TRAINING, SFM_ADVERSARIAL_TRAINING
from sfm_tf.training.plan import adversarial_plan
from sfm_tf.training.step_watch import Progress
from sfm_tf.training.timing import split_seconds
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig


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
