"""What an attacker knows, and so which model the gradients come from."""

import enum
from collections.abc import Callable, Mapping

import keras

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel


class ThreatModel(enum.Enum):
    """The attacker's knowledge, by the names of Yu et al. 2022, section 6.1 (2)."""

    BLACK_BOX = "black_box"
    GRAY_BOX = "gray_box"
    WHITE_BOX = "white_box"


def _independent(defended: DefendedModel, source: keras.Model | None) -> keras.Model:
    del defended
    if source is None:
        raise SfmError(
            "The black-box threat model needs a source model; train one or leave it out."
        )
    return source


_ATTACKED: Mapping[ThreatModel, Callable[[DefendedModel, keras.Model | None], keras.Model]] = {
    ThreatModel.BLACK_BOX: _independent,
    ThreatModel.GRAY_BOX: lambda defended, source: defended.without_preprocessor(),
    ThreatModel.WHITE_BOX: lambda defended, source: defended,
}


def attacked_model(
    threat_model: ThreatModel, defended: DefendedModel, source: keras.Model | None
) -> keras.Model:
    """Returns the model whose gradients the attacker follows (Yu et al. 2022, section 6.1 (2)).

    Black box: an independently trained source model; the paper's text also calls its attacker
    one who knows the target, "in a compromise way". Gray box: classifier behind masker, without
    the pre-processing T. White box: everything, with T's gradient by its surrogate (BPDA). For
    a model with neither masker nor T, gray and white box are both the bare classifier.

    Args:
        threat_model: What the attacker knows.
        defended: The model that will be scored.
        source: The independent model; None where the black box is not asked for.

    Raises:
        SfmError: If the black box is asked for without a source model.
    """
    return _ATTACKED[threat_model](defended, source)
