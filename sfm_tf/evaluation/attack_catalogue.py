"""The attacks that an evaluation can name, cheap ones first."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.adaptive import OBJECTIVES, AdaptiveGradientDescent
from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import CompiledAttack
from sfm_tf.attacks.autoattack import AutoAttack
from sfm_tf.attacks.cw import CarliniWagner
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.hop_skip_jump import HopSkipJump
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.settings import PIXEL_LEVELS

# Confident models look robust to a gradient that float32 has rounded away.
_LOSS = "stable_cross_entropy"

NORMS: Mapping[str, float] = {"inf": math.inf, "2": 2}
"""The orders of norms by their names among the settings."""

Options = Callable[[EvaluationConfig], dict[str, Any]]


class AttackKind(NamedTuple):
    """An attack of the catalogue.

    Attributes:
        attack: Its class.
        options: Its options, beside those that all attacks have.
        is_bounded: Whether it looks in a ball, rather than for the smallest perturbation.
        is_slow: Whether it takes minutes per image, so that only a few are attacked.
    """

    attack: type[CompiledAttack]
    options: Options
    is_bounded: bool = True
    is_slow: bool = False


def _steps(config: EvaluationConfig) -> dict[str, Any]:
    return {
        "step_size": config.step_size / PIXEL_LEVELS,
        "iterations": config.iterations,
        "gradient_samples": config.gradient_samples,
        "stop_when_fooled": config.robust_accuracy_only,
        "loss": _LOSS,
    }


def _random_start(config: EvaluationConfig) -> dict[str, Any]:
    return {**_steps(config), "random_start": True, "keep_best": True}


def _carlini_wagner(config: EvaluationConfig) -> dict[str, Any]:
    return {
        "binary_search_steps": config.cw_searches,
        "iterations": config.cw_iterations,
        "learning_rate": config.cw_learning_rate,
        "initial_constant": config.cw_initial_constant,
    }


def _apgd(loss: str) -> Options:
    return lambda config: {
        "loss": loss,
        "iterations": config.apgd_iterations,
        "gradient_samples": config.gradient_samples,
    }


def _auto_attack(version: str) -> Options:
    return lambda config: {
        "version": version,
        "iterations": config.apgd_iterations,
        "queries": config.square_queries,
        # Slower where few images are left, but a run that is killed loses one batch at most.
        "batches_at_once": 1,
    }


def _adaptive(objective: str) -> Options:
    return lambda config: {**_random_start(config), "objective": objective}


ATTACK_KINDS: Mapping[str, AttackKind] = {
    "noise": AttackKind(UniformNoise, lambda config: {}),
    "fgsm": AttackKind(FastGradientMethod, lambda config: {"loss": _LOSS}),
    "pgd": AttackKind(
        ProjectedGradientDescent,
        lambda config: {**_random_start(config), "restarts": config.restarts},
    ),
    "mim": AttackKind(
        MomentumIterativeMethod, lambda config: {**_steps(config), "keep_best": True}
    ),
    "diverse": AttackKind(DiverseInputsMethod, _steps),
    **{
        f"adaptive_{objective}": AttackKind(AdaptiveGradientDescent, _adaptive(objective))
        for objective in OBJECTIVES
    },
    "cw": AttackKind(CarliniWagner, _carlini_wagner, is_bounded=False),
    "apgd_ce": AttackKind(AutoProjectedGradientDescent, _apgd("cross_entropy")),
    "apgd_dlr": AttackKind(AutoProjectedGradientDescent, _apgd("dlr")),
    "fab_t": AttackKind(
        FastAdaptiveBoundary,
        lambda config: {"iterations": config.apgd_iterations},
        is_bounded=False,
    ),
    "apgd_t": AttackKind(AutoProjectedGradientDescent, _apgd("targeted_dlr")),
    "square": AttackKind(SquareAttack, lambda config: {"queries": config.square_queries}),
    "autoattack": AttackKind(AutoAttack, _auto_attack("standard")),
    "autoattack_rand": AttackKind(AutoAttack, _auto_attack("rand")),
    "hop_skip_jump": AttackKind(
        # Each image is kept as soon as it is done, for it takes seconds.
        HopSkipJump,
        lambda config: {"batch_size": 1},
        is_bounded=False,
        is_slow=True,
    ),
}
"""The attacks by name, in the order an evaluation runs them."""


def attack_rank(name: str) -> int:
    """Returns the place of an attack among all, cheap ones first."""
    return list(ATTACK_KINDS).index(name)


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
        name: A key of `ATTACK_KINDS`.
        estimator: The model to attack.
        epsilon: Radius of the ball, in the units of the pixels. For another one,
            `set_params(epsilon=...)` spares a second compilation. An attack for the smallest
            perturbation has none.
        config: Norm, iterations, step size and batch size.
        seed: Seed of everything random.

    Raises:
        SfmError: If there is no such attack, or a setting is outside its limits.
    """
    if name not in ATTACK_KINDS:
        raise SfmError(f"Unknown attack {name!r}; expected one of {', '.join(ATTACK_KINDS)}.")
    kind = ATTACK_KINDS[name]
    shared = {
        "norm": NORMS[config.norm],
        "epsilon": epsilon,
        "batch_size": config.attack_batch_size,
        "seed": seed,
    }
    # CW has one norm and draws nothing; an attack for the smallest perturbation has no radius.
    known = {option: value for option, value in shared.items() if option in kind.attack.options}
    return kind.attack(estimator, **{**known, **kind.options(config)})
