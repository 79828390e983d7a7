"""Named presets of the settings, one per dataset of the paper, and their overriding by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sfm_tf.datasets.settings import DataConfig, ValidationConfig
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.settings import ModelConfig
from sfm_tf.report.settings import ReportConfig
from sfm_tf.serving.settings import ExportConfig
from sfm_tf.settings import Settings, setting
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig
from sfm_tf.tuning.settings import AblationConfig, TuningConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Settings):
    """One named set of settings for all stages."""

    name: str = setting("digits", "Name of the preset the settings started from.")
    seed: int = setting(0, "Seed of every random choice.", minimum=0, maximum=2**31 - 1)
    data: DataConfig = setting(DataConfig(), "Settings of ingest.")
    validation: ValidationConfig = setting(ValidationConfig(), "Settings of validate.")
    model: ModelConfig = setting(ModelConfig(), "Settings of the models.")
    training: TrainingConfig = setting(TrainingConfig(), "Settings of training.")
    training_execution: TrainingExecutionConfig = setting(
        TrainingExecutionConfig(), "Where training runs, and what it keeps and shows."
    )
    tuning: TuningConfig = setting(TuningConfig(), "Settings of the search for weights.")
    ablation: AblationConfig = setting(AblationConfig(), "Settings of the ablations.")
    compared: ComparedConfig = setting(ComparedConfig(), "Settings of the compared defences.")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "Settings of evaluation.")
    report: ReportConfig = setting(ReportConfig(), "Settings of the report.")
    export: ExportConfig = setting(ExportConfig(), "Settings of the export.")


SECTIONS: Mapping[str, type[Settings]] = {
    field.name: type(field.default)
    for field in dataclasses.fields(Experiment)
    if isinstance(field.default, Settings)
}
"""The sections of an experiment. No two share a field name, so a field names its flag."""

_TRAINING_64 = TrainingConfig(sparsity_weight=0.015, semantic_weight=200.0)
"""Keeps w1 * sqrt(n) / w3 and w2 / (w3 * |x|) of CIFAR-10 for the 12,288 values of 64x64 pixels."""

_TUNING_64 = TuningConfig(
    tried_sparsity_weights=(0.005, 0.01, 0.015, 0.02, 0.025, 0.03),
    tried_semantic_weights=(60.0, 200.0, 600.0),
)
"""Keeps the same ratios for the weights that are tried, of which the first w1 is below 1."""


def _digits() -> Experiment:
    """8x8 grey handwritten digits: trains on two CPU cores in about a minute."""
    return Experiment(
        name="digits",
        data=DataConfig(dataset="digits"),
        model=ModelConfig(classifier_width=16, masker_width=8, masker_depth=2),
        training=TrainingConfig(
            batch_size=64,
            pretraining_epochs=5,
            epochs=10,
            source_epochs=12,
            sparsity_weight=0.3,
            semantic_weight=20.0,
            masker_learning_rate=2e-3,
            augmentation="crop",
        ),
        tuning=TuningConfig(
            tried_sparsity_weights=(0.1, 0.2, 0.3, 0.4),
            tried_semantic_weights=(20.0,),
            trial_epochs=6,
        ),
        ablation=AblationConfig(ablation_epochs=4),
        compared=ComparedConfig(
            feature_squeezing="bit_depth_3+median_2",
            quilting_patches=5_000,
            pixel_cnn_width=16,
            pixel_cnn_depth=2,
        ),
        evaluation=EvaluationConfig(
            num_examples=0,
            threat_models=("black_box", "gray_box", "white_box", "adaptive"),
            epsilons=(16.0, 24.0),
            iterations=40,
            step_size=4.0,
            restarts=4,
            min_clean_accuracy=0.8,
        ),
    )


def _cifar10() -> Experiment:
    """CIFAR-10 at the paper's size: ResNet-18, 50 epochs (section 6.1)."""
    return Experiment(name="cifar10", data=DataConfig(dataset="cifar10"))


def _svhn() -> Experiment:
    """SVHN at the paper's size; digits are not mirrored (section 6.1)."""
    return Experiment(
        name="svhn",
        data=DataConfig(dataset="svhn_cropped"),
        training=TrainingConfig(augmentation="crop"),
    )


def _tiny_imagenet() -> Experiment:
    """Tiny-ImageNet at the paper's size: ResNet-50 on 64x64 images (section 6.1)."""
    return Experiment(
        name="tiny_imagenet",
        data=DataConfig(dataset="tiny_imagenet"),
        model=ModelConfig(classifier="resnet50"),
        training=_TRAINING_64,
        tuning=_TUNING_64,
        evaluation=EvaluationConfig(min_clean_accuracy=0.4),
    )


def _image_folder() -> Experiment:
    """A user's own images, resized to 64x64."""
    return Experiment(
        name="image_folder",
        data=DataConfig(dataset="image_folder", image_size=64),
        training=_TRAINING_64,
        tuning=_TUNING_64,
    )


_PRESETS = {
    "digits": _digits,
    "cifar10": _cifar10,
    "svhn": _svhn,
    "tiny_imagenet": _tiny_imagenet,
    "image_folder": _image_folder,
}

EXPERIMENTS = tuple(_PRESETS)
"""Names of the presets."""


def preset(name: str) -> Experiment:
    """Returns the preset of this name.

    Raises:
        SfmError: If there is none; the message lists those there are.
    """
    if name not in _PRESETS:
        raise SfmError(f"Unknown experiment {name!r}; expected one of {', '.join(EXPERIMENTS)}.")
    return _PRESETS[name]()


def paper_recipe(experiment: Experiment) -> dict[str, Any]:
    """Returns the settings of training that Yu et al. 2022 print, or imply, for an experiment.

    The weights are those of section 6.2, and SGD is Algorithm 1's. Its learning rate is not said.
    Norms over the whole batch are not said either, but the weights lie just above the critical ones
    of a batch of 128 and far below those of single images (see `losses.sparsity_ratio`).
    """
    is_large = experiment.data.dataset == "tiny_imagenet"
    sparsity, semantic, reconstruction = (0.1, 0.01, 100.0) if is_large else (2.5e-3, 1.0, 1.0)
    return {
        "sparsity_weight": sparsity,
        "semantic_weight": semantic,
        "reconstruction_weight": reconstruction,
        "loss_reduction": "batch",
        "alternation": "epoch",
        "sparsity_ramp_epochs": 0,
        "mask_bias": 0.0,
        "masker_optimizer": "sgd",
        "masker_learning_rate": 0.01,
        "masker_gradient_norm": 0.0,
    }


def override(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Returns `experiment` with the named fields replaced.

    Args:
        experiment: The settings to start from.
        values: New values by field name, of any section; `seed` is the experiment's own.

    Raises:
        SfmError: If no section has such a field, or a value is outside its limits.
    """
    section_of = {
        field.name: section
        for section, config_class in SECTIONS.items()
        for field in dataclasses.fields(config_class)
    }
    unknown = sorted(set(values) - set(section_of) - {"seed"})
    if unknown:
        known = ", ".join(sorted([*section_of, "seed"]))
        raise SfmError(f"Unknown setting {unknown[0]!r}; expected one of {known}.")
    if values.get("recipe") == "paper":
        values = {**paper_recipe(experiment), **values}
    changed: dict[str, Any] = {"seed": values["seed"]} if "seed" in values else {}
    for section in SECTIONS:
        fields = {name: v for name, v in values.items() if section_of.get(name) == section}
        changed[section] = dataclasses.replace(getattr(experiment, section), **fields)
    return dataclasses.replace(experiment, **changed)
