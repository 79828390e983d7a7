"""The preset of the digits, with settings that make each of its stages take seconds."""

from typing import Any

from sfm_tf import experiments
from sfm_tf.experiments import Experiment

_TINY = {
    "max_train_examples": 150,
    "allowed_anomalies": ("label_conflict", "empty_class"),
    "classifier_width": 4,
    "masker_width": 4,
    "masker_depth": 1,
    "pretraining_epochs": 1,
    "epochs": 1,
    "source_epochs": 1,
    "ablation_epochs": 1,
    "mixed_precision": "float32",
    "quilting_patches": 100,
    "pixel_cnn_width": 4,
    "pixel_cnn_depth": 1,
    "pixel_cnn_epochs": 1,
    "num_examples": 12,
    "attacks": ("fgsm",),
    "epsilons": (16.0,),
    "iterations": 2,
    "audit_examples": 0,
}


def digits(**changes: Any) -> Experiment:
    """Returns the experiment, some of its settings replaced."""
    return experiments.override(experiments.preset("digits"), {**_TINY, **changes})
