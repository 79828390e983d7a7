"""The attacks that an evaluation can name."""

import functools
from collections.abc import Callable, Mapping

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

AttackBuilder = Callable[[TensorFlowV2Classifier, float, EvaluationConfig, int], CompiledAttack]

# Confident models look robust to a gradient that float32 has rounded away.
_LOSS = "stable_cross_entropy"


def _fgsm(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return FastGradientMethod(
        estimator,
        epsilon=epsilon,
        loss=_LOSS,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


def _pgd(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return ProjectedGradientDescent(
        estimator,
        epsilon=epsilon,
        step_size=config.step_size / PIXEL_LEVELS,
        iterations=config.iterations,
        random_start=True,
        keep_best=True,
        loss=_LOSS,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


def _mim(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return MomentumIterativeMethod(
        estimator,
        epsilon=epsilon,
        step_size=config.step_size / PIXEL_LEVELS,
        iterations=config.iterations,
        keep_best=True,
        loss=_LOSS,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


def _diverse(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return DiverseInputsMethod(
        estimator,
        epsilon=epsilon,
        step_size=config.step_size / PIXEL_LEVELS,
        iterations=config.iterations,
        loss=_LOSS,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


def _noise(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return UniformNoise(estimator, epsilon=epsilon, batch_size=config.attack_batch_size, seed=seed)


def _apgd(
    loss: str,
    estimator: TensorFlowV2Classifier,
    epsilon: float,
    config: EvaluationConfig,
    seed: int,
) -> CompiledAttack:
    return AutoProjectedGradientDescent(
        estimator,
        epsilon=epsilon,
        loss=loss,
        iterations=config.apgd_iterations,
        restarts=1,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


def _square(
    estimator: TensorFlowV2Classifier, epsilon: float, config: EvaluationConfig, seed: int
) -> CompiledAttack:
    return SquareAttack(
        estimator,
        epsilon=epsilon,
        queries=config.square_queries,
        batch_size=config.attack_batch_size,
        seed=seed,
    )


_BUILDERS: Mapping[str, AttackBuilder] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "mim": _mim,
    "diverse": _diverse,
    "noise": _noise,
    "apgd_ce": functools.partial(_apgd, "cross_entropy"),
    "apgd_dlr": functools.partial(_apgd, "dlr"),
    "apgd_t": functools.partial(_apgd, "targeted_dlr"),
    "square": _square,
}


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
    if name not in _BUILDERS:
        raise SfmError(f"Unknown attack {name!r}; expected one of {', '.join(_BUILDERS)}.")
    return _BUILDERS[name](estimator, epsilon, config, seed)
