"""Attacks of ART, and of foolbox on TensorFlow, with the benchmark's settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    CarliniL2Method,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from benchmarks.attack_settings import Settings
from benchmarks.measuring import Generate


def build_art(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns ART's attacks; its MIM refuses to run on a TensorFlow classifier."""
    fast = _art_gradient_attacks(classifier, settings, batch_size)
    quiet = {"batch_size": batch_size, "verbose": False}
    slow = {
        "cw": CarliniL2Method(
            classifier,
            binary_search_steps=settings.cw_searches,
            max_iter=settings.cw_iterations,
            initial_const=settings.cw_constant,
            **quiet,
        ),
        "apgd_ce": AutoProjectedGradientDescent(
            classifier,
            eps=settings.epsilon,
            eps_step=2 * settings.epsilon,
            max_iter=settings.apgd_iterations,
            nb_random_init=1,
            loss_type="cross_entropy",
            **quiet,
        ),
        "square": SquareAttack(
            classifier, eps=settings.epsilon, max_iter=settings.square_queries, **quiet
        ),
    }
    return {name: attack.generate for name, attack in {**fast, **slow}.items()}


def _art_gradient_attacks(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> dict[str, EvasionAttack]:
    return {
        "fgsm": FastGradientMethod(classifier, eps=settings.epsilon, batch_size=batch_size),
        "pgd": ProjectedGradientDescent(
            classifier,
            eps=settings.epsilon,
            eps_step=settings.pgd_step,
            max_iter=settings.pgd_iterations,
            batch_size=batch_size,
            verbose=False,
        ),
    }


def build_foolbox(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns foolbox's attacks, which are given one batch after another."""
    import foolbox

    momentum = {
        "abs_stepsize": settings.momentum_step,
        "steps": settings.momentum_iterations,
        "random_start": False,
    }
    attacks = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "pgd": foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=settings.pgd_step, steps=settings.pgd_iterations, random_start=False
        ),
        "mim": foolbox.attacks.LinfMomentumIterativeFastGradientMethod(**momentum),
        "cw": foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=settings.cw_searches,
            steps=settings.cw_iterations,
            stepsize=settings.cw_learning_rate,
            initial_const=settings.cw_constant,
            abort_early=False,
        ),
    }
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    model = foolbox.TensorFlowModel(classifier.model, bounds=(0, 1), device=device)
    return {
        name: _in_batches(attack, model, None if name == "cw" else settings.epsilon, batch_size)
        for name, attack in attacks.items()
    }


def _in_batches(attack: Any, model: Any, epsilon: float | None, batch_size: int) -> Generate:
    def generate(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch_size):
            batch = tf.constant(images[start : start + batch_size])
            criterion = tf.constant(labels[start : start + batch_size])
            _, clipped, _ = attack(model, batch, criterion, epsilons=epsilon)
            # CW-L2 returns black images in place of those it has not fooled the model on.
            is_black = tf.reduce_all(clipped == 0.0, axis=(1, 2, 3), keepdims=True)
            parts.append(tf.where(is_black, batch, clipped).numpy())
        return np.concatenate(parts)

    return generate
