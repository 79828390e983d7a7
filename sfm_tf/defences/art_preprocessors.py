"""The masker G and the pre-processing T as preprocessors of ART, for any of its classifiers."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf
from art.defences.preprocessor.preprocessor import PreprocessorTensorFlowV2

from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation


class SparseFeatureMasking(PreprocessorTensorFlowV2):
    """Multiplies images by the mask that G gives them (Yu et al. 2022, section 4.1).

    Gradients go through G. Put it first in the `preprocessing_defences` of a
    `TensorFlowV2Classifier`, which may follow it with other TensorFlow preprocessors.

    Args:
        masker: Model from images to a mask of shape `(batch, height, width, 1)`.
        apply_fit: Whether ART applies it in `fit`.
        apply_predict: Whether ART applies it in `predict` and to gradients.
    """

    params: ClassVar[list[str]] = ["masker", "apply_fit", "apply_predict"]

    def __init__(
        self, masker: keras.Model, *, apply_fit: bool = False, apply_predict: bool = True
    ) -> None:
        """Keeps the masker, shared with the caller."""
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.masker = masker

    def forward(self, x: tf.Tensor, y: Any = None) -> tuple[tf.Tensor, Any]:
        """Returns G(x) * x and the labels as they are.

        Args:
            x: Images in [0, 1], shape `(batch, height, width, channels)`.
            y: Labels, not used.
        """
        images = tf.cast(x, tf.float32)
        return self.masker(images, training=False) * images, y


class ImagePreprocessing(PreprocessorTensorFlowV2):
    """Applies the pre-processing T (Yu et al. 2022, section 5.3), with its surrogate's gradient.

    ART differentiates the forward pass of a TensorFlow preprocessor and never asks
    `estimate_forward`; the surrogate is therefore part of the forward pass. What T draws
    follows from the image and the public key, so attacks of ART face the function that is scored.

    Args:
        spec: Specification of T, such as `bit_depth_4+median_2`.
        surrogate: Gradient that stands in for T's: `identity` or `smooth`.
        fitted: Operations beside those of `OPERATIONS`, by name, as `fitted_operations` reads them.
        apply_fit: Whether ART applies it in `fit`.
        apply_predict: Whether ART applies it in `predict` and to gradients.

    Raises:
        SfmError: If the specification or the surrogate is unknown.
    """

    params: ClassVar[list[str]] = ["spec", "surrogate", "apply_fit", "apply_predict"]

    def __init__(
        self,
        spec: str,
        surrogate: str = "identity",
        *,
        fitted: Mapping[str, Operation] | None = None,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        """Parses the specification."""
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self._preprocessor: Preprocessor = parse_preprocessor(spec, surrogate, fitted)

    @property
    def spec(self) -> str:
        """Specification of T."""
        return self._preprocessor.spec

    @property
    def surrogate(self) -> str:
        """Name of the gradient that stands in for T's."""
        return self._preprocessor.surrogate

    def forward(self, x: tf.Tensor, y: Any = None) -> tuple[tf.Tensor, Any]:
        """Returns T(x) and the labels as they are.

        Args:
            x: Images in [0, 1], shape `(batch, height, width, channels)`.
            y: Labels, not used.
        """
        return self._preprocessor(x), y
