"""The attacks that an evaluation can name."""

from collections.abc import Callable, Mapping
from typing import Any

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.auto_projected_gradient import AutoProjectedGradientDescent
from sfm_tf.attacks.compiled_attack import CompiledAttack
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.momentum_iterative import MomentumIterativeMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.config import PIXEL_LEVELS, EvaluationConfig
from sfm_tf.errors import SfmError

# Confident models look robust to a gradient that float32 has rounded away.
_LOSS = "stable_cross_entropy"


def _steps(config: EvaluationConfig) -> dict[str, Any]:
    return {
        "step_size": config.step_size / PIXEL_LEVELS,
        "iterations": config.iterations,
        "loss": _LOSS,
    }


def _apgd(loss: str) -> Callable[[EvaluationConfig], dict[str, Any]]:
    return lambda config: {"loss": loss, "iterations": config.apgd_iterations, "restarts": 1}


_ATTACKS: Mapping[
    str, tuple[type[CompiledAttack], Callable[[EvaluationConfig], dict[str, Any]]]
] = {
    "fgsm": (FastGradientMethod, lambda config: {"loss": _LOSS}),
    "pgd": (
        ProjectedGradientDescent,
        lambda config: {**_steps(config), "random_start": True, "keep_best": True},
    ),
    "mim": (MomentumIterativeMethod, lambda config: {**_steps(config), "keep_best": True}),
    "diverse": (DiverseInputsMethod, _steps),
    "noise": (UniformNoise, lambda config: {}),
    "apgd_ce": (AutoProjectedGradientDescent, _apgd("cross_entropy")),
    "apgd_dlr": (AutoProjectedGradientDescent, _apgd("dlr")),
    "apgd_t": (AutoProjectedGradientDescent, _apgd("targeted_dlr")),
    "square": (SquareAttack, lambda config: {"queries": config.square_queries}),
}
"""Each attack's class, and its options beside those that all attacks have."""


def build_attack(
    name: str,
    estimator: TensorFlowV2Classifier,
    epsilon: float,
    config: EvaluationConfig,
    seed: int,
) -> CompiledAttack:
    """Returns the attack of this name as the evaluation runs it (Yu et al. 2022, section 6.1 (3)).

    PGD starts at a random point as Madry et al. 2018 define it, and keeps the most damaging
    iterate of each image; both climb the cross-entropy in its stable form. An evaluation wants the
    worst case; for the images that ART makes, use the classes with their own defaults.

    Args:
        name: One of `config.ATTACKS`.
        estimator: The model to attack.
        epsilon: Radius of the L-infinity ball in [0, 1]: the configured one over 255. For another
            radius, `set_params(epsilon=...)` spares a second compilation.
        config: Iterations, step size and batch size.
        seed: Seed of the random start.

    Raises:
        SfmError: If there is no such attack, or a setting is outside its limits.
    """
    if name not in _ATTACKS:
        raise SfmError(f"Unknown attack {name!r}; expected one of {', '.join(_ATTACKS)}.")
    attack, options = _ATTACKS[name]
    return attack(
        estimator,
        epsilon=epsilon,
        batch_size=config.attack_batch_size,
        seed=seed,
        **options(config),
    )
