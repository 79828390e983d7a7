"""The two optimizers of the alternation."""

import keras

from sfm_tf.config import TrainingConfig

_MOMENTUM = 0.9
_WARM_UP_SHARE = 0.05
"""Share of the steps over which the classifier's learning rate rises to its peak."""
_GRADIENT_NORM = 1.0
"""The masker's gradients are clipped to this norm: where a mask saturates Eq. 5 bends sharply."""


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


def masker_optimizer(config: TrainingConfig) -> keras.optimizers.Optimizer:
    """Returns Adam (Kingma and Ba 2015) at a constant learning rate, on clipped gradients.

    The paper says SGD; with it the mask ran to all zeros or all ones before the semantic loss
    could act.
    """
    return keras.optimizers.Adam(config.masker_learning_rate, global_clipnorm=_GRADIENT_NORM)
