"""The two optimizers of the alternation."""

from collections.abc import Callable, Mapping

import keras

from sfm_tf.training_config import TrainingConfig

_MOMENTUM = 0.9
_WARM_UP_SHARE = 0.05
"""Share of the steps over which the classifier's learning rate rises to its peak."""
_MASKER_OPTIMIZERS: Mapping[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "sgd": keras.optimizers.SGD,
}


def classifier_optimizer(config: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    """Returns SGD with Nesterov momentum, a linear warm-up and a cosine decay to zero.

    Args:
        config: Says the peak learning rate.
        steps: Steps that the classifier will take in all.
    """
    warm_up_steps = max(1, round(_WARM_UP_SHARE * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - warm_up_steps),
        warmup_target=config.classifier_learning_rate,
        warmup_steps=warm_up_steps,
    )
    return keras.optimizers.SGD(schedule, momentum=_MOMENTUM, nesterov=True)


def masker_optimizer(config: TrainingConfig, replicas: int = 1) -> keras.optimizers.Optimizer:
    """Returns Adam (Kingma and Ba 2015), or the paper's SGD, at a constant learning rate.

    Gradients are clipped by their norm, where the settings say so: where a mask saturates Eq. 5
    bends sharply.

    Args:
        config: Names the optimizer, its rate and the norm.
        replicas: How many of them each bring that share of the gradient.
    """
    norm = config.masker_gradient_norm / replicas
    make = _MASKER_OPTIMIZERS[config.masker_optimizer]
    return make(config.masker_learning_rate, global_clipnorm=norm if norm > 0.0 else None)
