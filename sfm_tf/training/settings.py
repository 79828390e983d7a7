"""Typed settings of the train stage."""

import dataclasses

from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """How `pipelines.train` runs Algorithm 1 of the paper."""

    recipe: str = setting(
        "stable",
        "Settings that the others start from: stable, or paper for those of Yu et al. 2022 as "
        "written.",
        choices=("stable", "paper"),
    )
    batch_size: int = setting(128, "Images per training step, on all devices together.", minimum=1)
    pretraining_epochs: int = setting(
        4, "Epochs of the classifier alone before the alternation (section 5.1).", minimum=0
    )
    epochs: int = setting(50, "Alternating epochs: one of classifier, one of masker.", minimum=1)
    source_epochs: int = setting(
        54, "Epochs of the independent source model that black-box attacks start from.", minimum=1
    )
    alternation: str = setting(
        "step", "When classifier and masker take turns.", choices=("epoch", "step")
    )
    freeze_classifier: bool = setting(
        False, "Train the masker alone after pre-training (section 5.2: expect a mask of ones)."
    )
    preprocess_training: bool = setting(
        True, "Apply T to the training images too, as Algorithm 1 does."
    )
    tuned: bool = setting(
        False, "Take w1, w2 and w3 of the best trial of pipelines.tune in place of the next three."
    )
    sparsity_weight: float = setting(0.03, "w1 of Eq. 2, on the L1 norm.", minimum=0.0)
    sparsity_ramp_epochs: int = setting(
        0,
        "Alternating epochs over which w1 rises from half the weight at which a mask of ones stops "
        "being best; 0 for all of w1 from the first.",
        minimum=0,
    )
    semantic_weight: float = setting(100.0, "w2 of Eq. 2, on the cosine distance.", minimum=0.0)
    semantic_loss: str = setting(
        "cosine",
        "Semantic loss: the cosine distance of Eq. 4, or the cross-entropy that section 4.2 warns "
        "of.",
        choices=("cosine", "cross_entropy"),
    )
    reconstruction_weight: float = setting(1.0, "w3 of Eq. 2, on the L2 distance.", minimum=0.0)
    loss_reduction: str = setting(
        "per_image",
        "Norms of Eq. 3 and 5 per image then averaged, or over the whole batch.",
        choices=("per_image", "batch"),
    )
    classifier_learning_rate: float = setting(
        0.1, "Peak learning rate of the classifier's SGD with momentum.", minimum=0.0
    )
    masker_optimizer: str = setting(
        "adam", "Optimizer of the masker; the paper says sgd.", choices=("adam", "sgd")
    )
    masker_learning_rate: float = setting(1e-3, "Learning rate of the masker.", minimum=0.0)
    masker_gradient_norm: float = setting(
        1.0, "Norm that the masker's gradients are clipped to; 0 leaves them.", minimum=0.0
    )
    target_statistics: str = setting(
        "moving",
        "Batch statistics of the frozen classifier while the masker learns.",
        choices=("moving", "batch"),
    )
    weight_decay: float = setting(5e-4, "L2 penalty on the classifier's kernels.", minimum=0.0)
    kept_epoch: str = setting(
        "last",
        "Which epoch's models are kept: the last, or that with the best validation accuracy.",
        choices=("last", "best"),
    )
    augmentation: str = setting(
        "crop_flip",
        "Random augmentation of training images.",
        choices=("none", "crop", "crop_flip"),
    )
    mixed_precision: str = setting(
        "auto",
        "Arithmetic of the layers; auto is bfloat16 on a GPU that has it, else float32.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = setting(
        False, "Compile the steps with XLA: slower on CPUs, and for one device only."
    )
    adversarial_training: str = setting(
        "none",
        "Trains a classifier, and another with a masker, on adversarial images besides.",
        choices=("none", "pgd", "trades"),
    )
    adversarial_epochs: int = setting(
        50, "Epochs of that after pre-training; with the masker, alternating ones.", minimum=1
    )
    adversarial_epsilon: float = setting(
        8.0, "Radius of those images in the L-infinity norm, in 1/255.", minimum=1e-6, maximum=255.0
    )
    adversarial_step_size: float = setting(
        2.0, "Step of the PGD that makes them, in 1/255.", minimum=1e-6, maximum=255.0
    )
    adversarial_iterations: int = setting(7, "Steps of that PGD.", minimum=1)
    trades_beta: float = setting(
        6.0, "Weight that trades gives to robustness; 1 / lambda of the paper.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExecutionConfig(Settings):
    """Where a training runs and what it keeps and shows; none of it changes what is learnt."""

    strategy: str = setting(
        "none",
        "Devices: one, all of this machine, or those of every machine that TF_CONFIG lists.",
        choices=("none", "mirrored", "multi_worker"),
    )
    checkpoint_steps: int = setting(
        0, "Steps between checkpoints within an epoch; 0 for one after each epoch.", minimum=0
    )
    keep_checkpoints: int = setting(
        2, "Newest checkpoints kept, beside that of the best epoch.", minimum=1
    )
    profile_steps: int = setting(
        0, "Steps of the second epoch that are profiled for TensorBoard.", minimum=0
    )
    mask_images: int = setting(
        4, "Validation images whose masks TensorBoard shows after each epoch.", minimum=0
    )
    fail_on_collapse: bool = setting(
        False, "Stop at the first alternating epoch whose mask is the same everywhere."
    )
