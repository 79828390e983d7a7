"""From a row of the catalogue to an attack that is ready to run."""

import inspect
from typing import Any

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

import sfm_tf.attacks

# All by name, so that the fingerprint of an evaluation covers their code.
from sfm_tf.attacks import (  # noqa: F401
    adaptive,
    apgd,
    autoattack,
    cw,
    diverse_inputs,
    fab,
    fgsm,
    hop_skip_jump,
    mim,
    pgd,
    redraw,
    square,
    squeezing_aware,
    uniform_noise,
)
from sfm_tf.attacks.attack import CompiledAttack
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_catalogue import ATTACKS, NORMS
from sfm_tf.evaluation.settings import EvaluationConfig


def attack_class(name: str) -> type[CompiledAttack]:
    """Returns the class of an attack of the catalogue."""
    module, class_name = ATTACKS[name].class_path.split(".")
    return getattr(getattr(sfm_tf.attacks, module), class_name)


def step_size_at(epsilon: float, config: EvaluationConfig) -> float:
    """Returns the step of PGD and its kin at a radius, both in 1/255.

    It is that of the settings, or longer where all steps together would not cross the radius.
    """
    return max(config.step_size, epsilon / config.iterations)


def build_attack(
    name: str,
    estimator: TensorFlowV2Classifier,
    epsilon: float,
    config: EvaluationConfig,
    seed: int,
    **options: Any,
) -> CompiledAttack:
    """Returns the attack of this name as the evaluation runs it (Yu et al. 2022, section 6.1 (3)).

    PGD starts at a random point as Madry et al. 2018 define it, and keeps the most damaging
    iterate of each image; both climb the cross-entropy in its stable form. An evaluation wants the
    worst case; for the images that ART makes, use the classes with their own defaults.

    Args:
        name: A key of `ATTACKS`.
        estimator: The model to attack.
        epsilon: Radius of the ball, in the units of the pixels. For another one,
            `set_params(epsilon=...)` spares a second compilation. An attack for the smallest
            perturbation has none.
        config: Norm, iterations, step size and batch size.
        seed: Seed of everything random.
        **options: Options of the attack that no setting has.

    Raises:
        SfmError: If there is no such attack, or a setting is outside its limits.
    """
    if name not in ATTACKS:
        raise SfmError(f"Unknown attack {name!r}; expected one of {', '.join(ATTACKS)}.")
    kind = ATTACKS[name]
    shared = {
        "norm": NORMS[config.norm],
        "epsilon": epsilon,
        "batch_size": config.attack_batch_size,
        "seed": seed,
    }
    # CW has one norm and draws nothing; an attack for the smallest perturbation has no radius.
    attack = attack_class(name)
    known = inspect.signature(attack).parameters
    taken = {option: value for option, value in shared.items() if option in known}
    return attack(estimator, **{**taken, **kind.options(config), **options})
