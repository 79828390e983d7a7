"""Typed settings of the stages: frozen dataclasses whose fields carry their help and their limits.

Presets of these settings live in `experiments`.
"""

import dataclasses
import re

from sfm_tf.choices import (
    ANOMALY_KINDS,
    ATTACKS,
    AUDIT_LEVELS,
    DEFENCES,
    PIXEL_LEVELS,
    THREAT_MODELS,
)
from sfm_tf.errors import SfmError
from sfm_tf.settings import Settings, setting
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig
from sfm_tf.tuning_config import AblationConfig, TuningConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What `pipelines.ingest` reads and how it splits it."""

    dataset: str = setting(
        "digits",
        "Dataset to ingest.",
        choices=("digits", "cifar10", "svhn_cropped", "tiny_imagenet", "image_folder"),
    )
    data_dir: str = setting(
        "", "Folder with data prepared by TensorFlow Datasets; empty for its own default."
    )
    source: str = setting(
        "", "Archive or folder with the raw images (tiny_imagenet: zip or folder; image_folder)."
    )
    image_size: int = setting(
        0,
        "Height and width in pixels that images are resized to; 0 keeps them.",
        minimum=0,
        maximum=1024,
    )
    validation_fraction: float = setting(
        0.1, "Share of the training images set aside for validation.", minimum=0.01, maximum=0.5
    )
    test_fraction: float = setting(
        0.2,
        "Share set aside for testing where a dataset has no test split.",
        minimum=0.01,
        maximum=0.5,
    )
    max_train_examples: int = setting(
        0, "Images taken from the training split, validation included; 0 for all.", minimum=0
    )
    max_test_examples: int = setting(0, "Images taken from the test split; 0 for all.", minimum=0)
    shards: int = setting(4, "TFRecord files per split.", minimum=1, maximum=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig(Settings):
    """What `pipelines.validate` lets pass."""

    allowed_anomalies: tuple[str, ...] = setting(
        ("label_conflict",),
        "Kinds of anomaly that are listed but do not stop the run.",
        choices=ANOMALY_KINDS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The classifier F, the masker G and the pre-processing T."""

    classifier: str = setting(
        "resnet18",
        "Architecture of the classifier.",
        choices=("resnet18", "resnet20", "resnet50"),
    )
    classifier_width: int = setting(64, "Channels of the classifier's first stage.", minimum=4)
    masker_width: int = setting(32, "Channels of the Attention U-Net's first level.", minimum=4)
    masker_depth: int = setting(
        3, "Times the Attention U-Net halves the resolution.", minimum=1, maximum=6
    )
    mask_bias: float = setting(
        0.0,
        "Bias of the mask's sigmoid at the start; 2 begins with a mask of 0.88.",
        minimum=-20.0,
        maximum=20.0,
    )
    preprocessor: str = setting(
        "bit_depth_4",
        "Pre-processing T: bit_depth_B, median_W, non_local_means_SEARCH_TEMPLATE_STRENGTH, a "
        "chain of them joined by '+', or none.",
    )
    surrogate: str = setting(
        "identity", "Gradient that stands in for T's (BPDA).", choices=("identity", "smooth")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedConfig(Settings):
    """The defences that the masker is compared with, and what `pipelines.fit_defences` fits."""

    feature_squeezing: str = setting(
        "bit_depth_5+median_2+non_local_means_13_3_2",
        "Squeezers of feature squeezing (Xu et al. 2018), a chain; its detector looks at each.",
    )
    tvm: str = setting(
        "total_variation_50_30",
        "Total variation minimisation (Guo et al. 2018): total_variation_DROPPED_WEIGHT, the "
        "share of dropped values in per cent and the weight in thousandths.",
    )
    quilting: str = setting(
        "quilting_1",
        "Image quilting (Guo et al. 2018): quilting_NEIGHBOURS, how many nearest patches one is "
        "drawn from.",
    )
    pixel_defend: str = setting(
        "pixel_defend_16",
        "PixelDefend (Song et al. 2018): pixel_defend_EPSILON, how far a value may move, in 1/255.",
    )
    sensitivity: str = setting(
        "sensitivity_10",
        "Completion of sensitive points (Zhao et al. 2021): sensitivity_SHARE, in per cent.",
    )
    jpeg: str = setting("jpeg_75", "JPEG compression: jpeg_QUALITY.")
    quilting_patches: int = setting(
        20_000, "Patches of training images that quilting chooses from.", minimum=1
    )
    pixel_cnn_width: int = setting(32, "Channels of PixelDefend's PixelCNN++.", minimum=4)
    pixel_cnn_depth: int = setting(4, "Its residual blocks.", minimum=1, maximum=32)
    pixel_cnn_mixtures: int = setting(5, "Logistics that its pixels are mixed of.", minimum=1)
    pixel_cnn_epochs: int = setting(20, "Epochs that it is trained.", minimum=1)
    pixel_cnn_batch_size: int = setting(64, "Images per step of that.", minimum=1)
    pixel_cnn_learning_rate: float = setting(1e-3, "Peak learning rate of that.", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Which attacks `pipelines.evaluate` runs, and what it asks of a model to bless it."""

    num_examples: int = setting(
        1000, "Test images evaluated, the first ones of the split; 0 for all.", minimum=0
    )
    model: str = setting(
        "",
        "Classifier of your own, a .keras file or a SavedModel that returns logits, to evaluate in "
        "place of the trained models.",
    )
    source_model: str = setting(
        "",
        "Classifier that black-box attacks start from, a .keras file or a SavedModel; empty for "
        "the source model that was trained.",
    )
    defences: tuple[str, ...] = setting(
        ("undefended", "sfm"),
        f"Defences that are evaluated: {', '.join(DEFENCES)}; chains of them and of "
        "pre-processing joined by '+', such as jpeg+median_2; or all.",
    )
    attack_batch_size: int = setting(128, "Images attacked at a time.", minimum=1)
    attacks: tuple[str, ...] = setting(
        ("fgsm", "pgd"),
        "Attacks of the black, gray and white box and of undefended; the other threat models have "
        "attacks of their own.",
        choices=ATTACKS,
    )
    threat_models: tuple[str, ...] = setting(
        ("black_box", "gray_box", "white_box"), "What the attacker knows.", choices=THREAT_MODELS
    )
    norm: str = setting("inf", "Norm that bounds a perturbation.", choices=("inf", "2"))
    epsilons: tuple[float, ...] = setting(
        (8.0, 16.0),
        "Radii of the ball, in 1/255; so is that of L2, where 127.5 is a norm of 0.5.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    iterations: int = setting(30, "Iterations of PGD, MIM, Diverse and adaptive.", minimum=1)
    step_size: float = setting(
        1.0,
        "Step of PGD, MIM, Diverse and adaptive, in 1/255.",
        minimum=1e-6,
        maximum=PIXEL_LEVELS,
    )
    restarts: int = setting(1, "Random starts of PGD.", minimum=1)
    gradient_samples: int = setting(
        1, "Looks that a gradient is the mean of, for a random defence (EOT).", minimum=1
    )
    cw_searches: int = setting(5, "Values of c that CW tries for each image.", minimum=1)
    cw_iterations: int = setting(20, "Iterations of CW for each c.", minimum=1)
    # Carlini and Wagner's 0.01 is for thousands of iterations; in twenty it gets nowhere near.
    cw_learning_rate: float = setting(0.03, "Step of CW's Adam.", minimum=1e-6)
    cw_initial_constant: float = setting(0.1, "First value of CW's c.", minimum=1e-9)
    apgd_iterations: int = setting(100, "Iterations of APGD and FAB, AutoAttack's too.", minimum=1)
    square_queries: int = setting(5000, "Queries of Square per image.", minimum=1)
    decision_examples: int = setting(
        20, "Images that the decision-based attacker spends its queries on.", minimum=1
    )
    robust_accuracy_only: bool = setting(
        False,
        "Leave alone the images that an attack has fooled the scored model with: faster, with the "
        "same worst case, but each attack's accuracy then counts those before it.",
    )
    attack_precision: str = setting(
        "float32",
        "Arithmetic of the model that attacks at a radius see; all else is in float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    audit_examples: int = setting(
        100,
        "Test images, the first ones, on which the audit asks whether the attacks were as strong "
        "as they could be; 0 leaves its own measurements out.",
        minimum=0,
    )
    required_audit: str = setting(
        "incomplete",
        "What the audit has to find the evaluation at least, for BLESSED.",
        choices=AUDIT_LEVELS,
    )
    min_clean_accuracy: float = setting(
        0.5, "Clean accuracy of the defended model needed for BLESSED.", minimum=0.0, maximum=1.0
    )
    max_clean_drop: float = setting(
        0.1, "Clean accuracy the defence may cost, for BLESSED.", minimum=0.0, maximum=1.0
    )
    min_worst_case_accuracy: float = setting(
        0.1,
        "Accuracy under the worst attack per image needed for BLESSED.",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """What `pipelines.report` shows beside the tables."""

    gallery_examples: int = setting(8, "Images in each figure.", minimum=1, maximum=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Where `pipelines.export` puts the model that a server loads."""

    serving_dir: str = setting("", "Folder of served models; empty for <workdir>/serving.")
    model_name: str = setting("sfm_defended", "Name under which the server finds the model.")
    precision: str = setting(
        "float32",
        "Arithmetic of the served model; in bfloat16 its answers differ from those evaluated, by "
        "what pushed.json says.",
        choices=("float32", "bfloat16"),
    )
    keep_versions: int = setting(0, "Versions kept after a push; 0 keeps all.", minimum=0)
    allow_not_blessed: bool = setting(False, "Export a model that evaluation did not bless.")

    def __post_init__(self) -> None:
        """Raises `SfmError` also for a model name that is no plain folder name."""
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.model_name):
            raise SfmError(
                f"Invalid model_name {self.model_name!r}; expected letters, digits, '_', '-', '.'."
            )


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
