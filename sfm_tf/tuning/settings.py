"""Typed settings of the tune and the ablate stage."""

import dataclasses

from sfm_tf.settings import Settings, setting

WEIGHTS = ("sparsity_weight", "semantic_weight", "reconstruction_weight")
"""Fields of `TrainingConfig` that a tuning chooses: w1, w2 and w3 of Eq. 2."""

SHARED_SETTINGS = ("epsilons", "iterations", "step_size", "gradient_samples", "attack_batch_size")
"""Settings of an evaluation that apply to the scores of trials too."""

ABLATIONS = (
    "no_semantic_loss",
    "no_reconstruction_loss",
    "cross_entropy",
    "frozen_target",
    "no_training_preprocessing",
)
"""Trainings that lack something; see `tuning.ablations`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig(Settings):
    """Which weights of the masker's loss `pipelines.tune` tries (Yu et al. 2022, section 6.2)."""

    tuner: str = setting(
        "grid",
        "How KerasTuner picks the weights of the next trial.",
        choices=("grid", "random", "bayesian", "hyperband"),
    )
    tried_sparsity_weights: tuple[float, ...] = setting(
        (0.01, 0.02, 0.03, 0.04, 0.05, 0.06),
        "Values of w1 for the grid. The other tuners choose between the smallest and the largest "
        "of them.",
        minimum=0.0,
    )
    tried_semantic_weights: tuple[float, ...] = setting(
        (30.0, 100.0, 300.0), "Values of w2 to try.", minimum=0.0
    )
    tried_reconstruction_weights: tuple[float, ...] = setting(
        (1.0,), "Values of w3 to try.", minimum=0.0
    )
    max_trials: int = setting(
        0,
        "Largest number of trials; 0 for the number of combinations of the weights, or for "
        "hyperband's own number.",
        minimum=0,
    )
    trial_epochs: int = setting(
        0,
        "Alternating epochs of a trial (hyperband: of the longest trial); 0 for --epochs.",
        minimum=0,
    )
    tuning_examples: int = setting(
        1000,
        "Number of validation images for the scores, counted from the first one; 0 for all.",
        minimum=0,
    )
    tune_gray_box: bool = setting(
        True, "Also measure the gray box, as Figure 3 shows it; it does not affect the choice."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig(Settings):
    """What `pipelines.ablate` takes out of the training, one thing at a time."""

    ablations: tuple[str, ...] = setting(
        ABLATIONS, "Parts to leave out, each in a training of its own.", choices=ABLATIONS
    )
    ablation_epochs: int = setting(
        0, "Alternating epochs of each training; 0 for --epochs.", minimum=0
    )
    ablation_examples: int = setting(
        1000,
        "Number of validation images for the scores, counted from the first one; 0 for all.",
        minimum=0,
    )
