"""Typed settings of the train stage."""

import dataclasses

from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """How `pipelines.train` runs Algorithm 1 of the paper."""

    recipe: str = setting(
        "stable",
        "Defaults of the other training settings: stable, or paper for those that Yu et al. 2022 "
        "print.",
        choices=("stable", "paper"),
    )
    batch_size: int = setting(128, "Images per training step, on all devices together.", minimum=1)
    pretraining_epochs: int = setting(
        4, "Epochs in which the classifier is trained alone first (section 5.1).", minimum=0
    )
    epochs: int = setting(
        50, "Alternating epochs; each trains the classifier and the masker.", minimum=1
    )
    source_epochs: int = setting(
        54, "Epochs of the independent source model of the black-box attacks.", minimum=1
    )
    alternation: str = setting(
        "step",
        "Whether classifier and masker take turns after each epoch or each step.",
        choices=("epoch", "step"),
    )
    freeze_classifier: bool = setting(
        False, "Train only the masker after pre-training (section 5.2 expects a mask of ones)."
    )
    preprocess_training: bool = setting(True, "Apply T in training, too, as Algorithm 1 does.")
    tuned: bool = setting(
        False, "Use the weights w1, w2 and w3 of the best trial of `pipelines.tune`."
    )
    sparsity_weight: float = setting(0.03, "w1 of Eq. 2, on the L1 norm.", minimum=0.0)
    sparsity_ramp_epochs: int = setting(
        0,
        "Alternating epochs over which w1 grows to its full value. It starts at half the value "
        "above which a mask of ones is no longer the optimum; 0 starts with the full w1.",
        minimum=0,
    )
    semantic_weight: float = setting(100.0, "w2 of Eq. 2, on the cosine distance.", minimum=0.0)
    semantic_loss: str = setting(
        "cosine",
        "Semantic loss: the cosine distance of Eq. 4, or the cross-entropy that section 4.2 "
        "advises against.",
        choices=("cosine", "cross_entropy"),
    )
    reconstruction_weight: float = setting(1.0, "w3 of Eq. 2, on the L2 distance.", minimum=0.0)
    loss_reduction: str = setting(
        "per_image",
        "Norms of Eq. 3 and 5: per image and averaged, or over the whole batch.",
        choices=("per_image", "batch"),
    )
    classifier_learning_rate: float = setting(
        0.1, "Peak learning rate of the classifier's SGD with momentum.", minimum=0.0
    )
    masker_optimizer: str = setting(
        "adam", "Optimizer of the masker; the paper uses sgd.", choices=("adam", "sgd")
    )
    masker_learning_rate: float = setting(1e-3, "Learning rate of the masker.", minimum=0.0)
    masker_gradient_norm: float = setting(
        1.0, "Norm to which the masker's gradients are clipped; 0 does not clip.", minimum=0.0
    )
    target_statistics: str = setting(
        "moving",
        "Batch-normalisation statistics that the frozen classifier uses while the masker learns.",
        choices=("moving", "batch"),
    )
    weight_decay: float = setting(5e-4, "L2 penalty on the classifier's kernels.", minimum=0.0)
    kept_epoch: str = setting(
        "last",
        "Which models are kept: last epoch's, or those with the best validation accuracy.",
        choices=("last", "best"),
    )
    augmentation: str = setting(
        "crop_flip",
        "Random augmentation of training images.",
        choices=("none", "crop", "crop_flip"),
    )
    mixed_precision: str = setting(
        "auto",
        "Precision of the layers; auto is bfloat16 on a GPU that supports it, otherwise float32.",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = setting(
        False, "Compile the training steps with XLA; slower on CPUs, and for one device only."
    )
    adversarial_training: str = setting(
        "none",
        "Also train a classifier, and a classifier with a masker, on adversarial images.",
        choices=("none", "pgd", "trades"),
    )
    adversarial_epochs: int = setting(
        50,
        "Epochs of adversarial training after pre-training; alternating ones with the masker.",
        minimum=1,
    )
    adversarial_epsilon: float = setting(
        8.0, "L-infinity radius of adversarial training, in 1/255.", minimum=1e-6, maximum=255.0
    )
    adversarial_step_size: float = setting(
        2.0, "Step size of PGD in adversarial training, in 1/255.", minimum=1e-6, maximum=255.0
    )
    adversarial_iterations: int = setting(7, "Steps of PGD in adversarial training.", minimum=1)
    trades_beta: float = setting(
        6.0, "Weight of robustness in trades; 1 / lambda of its paper.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExecutionConfig(Settings):
    """Where a training runs, what it keeps and what it shows; none of it changes the weights."""

    strategy: str = setting(
        "none",
        "Devices: one, all of this machine, or all of the machines that TF_CONFIG lists.",
        choices=("none", "mirrored", "multi_worker"),
    )
    checkpoint_steps: int = setting(
        0, "Steps between checkpoints within an epoch; 0 for one after each epoch.", minimum=0
    )
    keep_checkpoints: int = setting(
        2, "Number of newest checkpoints to keep, besides that of the best epoch.", minimum=1
    )
    profile_steps: int = setting(
        0, "Steps of the second epoch to profile for TensorBoard.", minimum=0
    )
    mask_images: int = setting(
        4, "Validation images whose masks are shown in TensorBoard after each epoch.", minimum=0
    )
    fail_on_collapse: bool = setting(
        False, "Stop at the first alternating epoch whose mask is the same for all pixels."
    )
