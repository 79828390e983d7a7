"""Backward pass differentiable approximation (Athalye et al. 2018): a stand-in for a gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

ImageFunction = Callable[[tf.Tensor], tf.Tensor]


def with_surrogate_gradient(forward: ImageFunction, surrogate: ImageFunction) -> ImageFunction:
    """Gives `forward` the gradient of `surrogate`.

    The backward pass differentiable approximation of Athalye, Carlini and Wagner, "Obfuscated
    gradients give a false sense of security", 2018, section 4.1: values are those of `forward`,
    while the backward pass differentiates `surrogate` at the same images. The surrogate is only
    evaluated when a gradient is asked for. Weights that `forward` reads get no gradient.

    Args:
        forward: Maps images to a tensor; need not be differentiable.
        surrogate: Maps images to a tensor of the same shape, differentiable by TensorFlow;
            `tf.identity` for the straight-through gradient.

    Returns:
        A function of images that works eagerly and inside `tf.function`. A SavedModel keeps its
        values but not its gradient.
    """

    @tf.custom_gradient
    def evaluate(images: tf.Tensor) -> tuple[tf.Tensor, ImageFunction]:
        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                approximation = surrogate(images)
            of_images = tape.gradient(approximation, images, output_gradients=upstream)
            # TensorFlow asks for both where `forward` reads the weights of a model.
            return (of_images, [None] * len(variables)) if variables else of_images

        return forward(images), gradient

    return evaluate
