"""The forward pass of the defence: F(T(G(x) * x)), written here and nowhere else."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError, in_one_line
from sfm_tf.preprocessors.chain import SURROGATES, Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.draws import Draws


@keras.saving.register_keras_serializable(package="sfm_tf")
class DefendedModel(keras.Model):
    """Classifier F behind masker G and pre-processing T: `F(T(G(x) * x))`.

    This is the object that is attacked, scored and exported (Yu et al. 2022, section 5.3). It
    always runs in inference mode, batch normalisation by moving averages, and it hands its parts
    float32 images whatever the dtype policy: T and the mask are not to be rounded to 16 bits.

    Args:
        classifier: Model from images to float32 logits.
        masker: Model from images to a mask of shape `(batch, height, width, 1)`; None for a mask
            of ones.
        preprocessor: Pre-processing T; by default the identity.
        **options: Further arguments of `keras.Model`, such as `name`.
    """

    def __init__(
        self,
        classifier: keras.Model,
        masker: keras.Model | None = None,
        preprocessor: Preprocessor | None = None,
        **options: Any,
    ) -> None:
        """Keeps the parts; they are shared with the caller, not copied."""
        super().__init__(**{**options, "dtype": "float32"})
        self.classifier = classifier
        self.masker = masker
        self.preprocessor = parse_preprocessor("none") if preprocessor is None else preprocessor
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Does nothing: the parts come built."""

    def mask(self, images: tf.Tensor) -> tf.Tensor:
        """Returns G(x).

        Args:
            images: Float32 in [0, 1], shape `(batch, height, width, channels)`.

        Returns:
            Float32 in [0, 1], shape `(batch, height, width, 1)`; ones without a masker.
        """
        if self.masker is None:
            return tf.ones_like(images[..., :1])
        return self.masker(images, training=False)

    def masked(self, images: tf.Tensor) -> tf.Tensor:
        """Returns G(x) * x, of the images' shape: one mask for all channels of a pixel."""
        return self.mask(images) * images

    def defended(self, images: tf.Tensor) -> tf.Tensor:
        """Returns T(G(x) * x), of the images' shape: what the classifier sees.

        Where T draws, it draws from the images x themselves.
        """
        return self.preprocessor(self.masked(images), drawn_from=images)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns F(T(G(x) * x)).

        Args:
            images: Float32 in [0, 1], shape `(batch, height, width, channels)`.

        Returns:
            Float32 logits of shape `(batch, classes)`.
        """
        return self.classified(self.defended(images))

    def classified(self, defended_images: tf.Tensor) -> tf.Tensor:
        """Returns F of what `defended` returned, logits as those of `call`."""
        return self.classifier(defended_images, training=False)

    def without_preprocessor(self) -> "DefendedModel":
        """Returns `F(G(x) * x)`, which a gray-box attacker knows (section 6.1), sharing weights."""
        return DefendedModel(self.classifier, self.masker)

    def without_defence(self) -> "DefendedModel":
        """Returns the bare classifier, sharing weights."""
        return DefendedModel(self.classifier)

    def for_attacker(self) -> "DefendedModel":
        """Returns the model that an attacker faces, who knows it or may ask it, sharing weights.

        It is this very model unless its pre-processing draws afresh at every call: nobody knows
        the next draws.
        """
        return self._with_preprocessor(self.preprocessor.for_attacker())

    def with_draws(self, draws: Draws) -> "DefendedModel":
        """Returns the model with random choices from elsewhere, sharing weights; itself without."""
        return self._with_preprocessor(self.preprocessor.with_draws(draws))

    def with_each_surrogate(self) -> "tuple[DefendedModel, ...]":
        """Returns the model itself, then one for each other stand-in of T's gradient."""
        used = self.preprocessor.surrogate
        others = [] if self.preprocessor.spec == "none" else [s for s in SURROGATES if s != used]
        return self, *(
            self._with_preprocessor(self.preprocessor.with_surrogate(other)) for other in others
        )

    def for_service(self, key: bytes) -> "DefendedModel":
        """Returns the model as it is served: a secret key, or fresh draws, in place of rehearsed.

        Args:
            key: 16 bytes that nobody else knows; not used where nothing follows from a key.
        """
        return self.with_draws(self.preprocessor.draws.for_service(key))

    def _with_preprocessor(self, preprocessor: Preprocessor) -> "DefendedModel":
        if preprocessor is self.preprocessor:
            return self
        return DefendedModel(self.classifier, self.masker, preprocessor)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` rebuilds the model from; T goes by its specification.

        Raises:
            SfmError: If T was fitted: its specification does not hold what it was fitted to.
        """
        if self.preprocessor.content:
            raise SfmError(
                f"A model with the fitted pre-processing {self.preprocessor.spec} has no "
                "configuration; save its classifier and masker instead."
            )
        masker = self.masker
        return {
            "name": self.name,
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "masker": None if masker is None else keras.saving.serialize_keras_object(masker),
            "preprocessor": self.preprocessor.spec,
            "surrogate": self.preprocessor.surrogate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "DefendedModel":
        """Rebuilds a model, without its weights, from what `get_config` returned."""
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in ("classifier", "masker")
        }
        preprocessor = parse_preprocessor(config["preprocessor"], config["surrogate"])
        return cls(**parts, preprocessor=preprocessor, name=config["name"])


_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def in_precision(model: keras.Model, precision: str) -> keras.Model:
    """Returns a copy of `model` whose layers compute in 16 bits.

    Weights stay in float32, as do the layers that make the model's outputs: rounded logits would
    lose the small differences that an attack climbs. What a `DefendedModel` does between its parts
    is in float32 always.

    Args:
        model: Functional model or `DefendedModel` that computes in float32.
        precision: `bfloat16` or `float16`.

    Raises:
        SfmError: If the model cannot be rebuilt from its configuration.
    """
    if isinstance(model, DefendedModel):
        masker = None if model.masker is None else in_precision(model.masker, precision)
        return DefendedModel(in_precision(model.classifier, precision), masker, model.preprocessor)
    last = {id(layer) for layer in _output_layers(model)}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            raise TypeError(f"it holds {layer.name}, a model of a class of its own")
        config = layer.get_config()
        if id(layer) not in last and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = _POLICIES[precision]
        return type(layer).from_config(config)

    try:
        # Models within the model, as a user's own classifier is one, are copied by their layers.
        twin = keras.models.clone_model(model, clone_function=copy, recursive=True)
    except (TypeError, ValueError) as error:
        raise SfmError(
            f"Model {model.name} cannot be copied to compute in {precision} "
            f"({in_one_line(error)}); use float32."
        ) from error
    twin.set_weights(model.get_weights())
    return twin


def _output_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers that make a model's outputs, also where they are in models within it."""
    for output in getattr(model, "outputs", ()):
        layer = output._keras_history.operation
        if isinstance(layer, keras.Model):
            yield from _output_layers(layer)
        yield layer
