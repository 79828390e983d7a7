"""The libraries whose attacks are compared with this one's, if they are installed."""

import functools
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from benchmarks.attack_settings import Settings
from benchmarks.attacked_model import CLASS_COUNT, SHAPE
from benchmarks.measuring import Generate, Predict
from sfm_tf.models.art_classifier import wrap_classifier

_LARGEST_DIFFERENCE = 1e-4


class Rival(NamedTuple):
    """A library.

    Attributes:
        module: Where its attacks are built: a module of `benchmarks`.
        function: The function there.
        packages: What it imports.
        is_torch: Whether it attacks the copy in torch.
    """

    module: str
    function: str
    packages: Sequence[str]
    is_torch: bool = False

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


RIVALS: Mapping[str, Rival] = {
    "art": Rival("tensorflow_rivals", "build_art", ["art"]),
    "foolbox": Rival("tensorflow_rivals", "build_foolbox", ["foolbox"]),
    "torchattacks": Rival(
        "torch_rivals", "build_torchattacks", ["torch", "torchattacks"], is_torch=True
    ),
    "autoattack": Rival(
        "torch_rivals", "build_autoattack", ["torch", "pyautoattack"], is_torch=True
    ),
}
"""The libraries by name."""


class AttackedModel(NamedTuple):
    """The model as a rival sees it."""

    model: Any
    predict: Predict


def wrap_model(model: keras.Model, batch_size: int) -> AttackedModel:
    """Returns the model as ART's classifier, which this library's attacks take, too."""
    classifier = wrap_classifier(model, CLASS_COUNT, SHAPE, batch_size)
    return AttackedModel(classifier, classifier.predict)


def copy_to_torch(model: keras.Model, images: np.ndarray) -> AttackedModel:
    """Copies a model to torch, says how far the logits differ, and refuses if it is too far.

    Args:
        model: Classifier.
        images: Float32 in [0, 1], to compare the logits on.

    Raises:
        ValueError: If a logit differs by more than 1e-4.
    """
    from benchmarks import torch_copy

    copy = torch_copy.TorchCopy(model)
    predict = functools.partial(torch_copy.predict, copy)
    difference = float(np.abs(model.predict(images, verbose=0) - predict(images)).max())
    print(f"copy in torch on {torch_copy.DEVICE}: logits differ by at most {difference:.1e}")
    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(f"Logits of both models differ by {difference}; expected at most 1e-4.")
    return AttackedModel(copy, predict)


def build_rival(
    name: str, attacked: AttackedModel, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns the attacks of a library by their names among `KINDS`."""
    rival = RIVALS[name]
    module = importlib.import_module(f"benchmarks.{rival.module}")
    return getattr(module, rival.function)(attacked.model, settings, batch_size)
