"""The devices that a training runs on, as a distribution strategy of TensorFlow."""

import json
import os
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.settings import TrainingConfig

_CLUSTER_VARIABLE = "TF_CONFIG"
_SECONDS_WITHOUT_ANSWER = 120.0
"""After so long without another worker's share of a step, a worker gives up."""


def _open_mirrored() -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _open_multi_worker() -> tf.distribute.Strategy:
    cluster_task()
    options = tf.distribute.experimental.CommunicationOptions(
        timeout_seconds=_SECONDS_WITHOUT_ANSWER
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise SfmError(
            f"Cannot join the workers of {_CLUSTER_VARIABLE} ({reason}); start every worker that "
            "it lists, each with its own index, and check their addresses."
        ) from error


_OPENERS: Mapping[str, Callable[[], tf.distribute.Strategy]] = {
    "none": tf.distribute.get_strategy,
    "mirrored": _open_mirrored,
    "multi_worker": _open_multi_worker,
}


def open_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy that joins the devices.

    Args:
        name: `none` for one device; `mirrored` for all GPUs of this machine, or all logical CPUs
            where it has none; `multi_worker` for those of all processes that the environment
            variable TF_CONFIG lists, of which this is one. The latter has to come before any
            computation of the process, and waits for the others.

    Raises:
        SfmError: If TF_CONFIG is missing or not understood, or the workers cannot be joined.
    """
    return _OPENERS[name]()


def cluster_task() -> tuple[str, int]:
    """Returns the type and the index of this process among those that TF_CONFIG lists.

    Raises:
        SfmError: If the variable is missing or not understood.
    """
    text = os.environ.get(_CLUSTER_VARIABLE, "")
    try:
        values = json.loads(text)
        kind, index = values["task"]["type"], int(values["task"]["index"])
        values["cluster"][kind][index]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SfmError(
            f"{_CLUSTER_VARIABLE} is {text!r}; strategy multi_worker expects in it, for example, "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ) from error
    return kind, index


def is_chief(name: str) -> bool:
    """Tells whether this process is the one that writes files: the only one, or the first worker.

    Args:
        name: Name of the strategy.

    Raises:
        SfmError: If it is `multi_worker` and TF_CONFIG is missing or not understood.
    """
    if name != "multi_worker":
        return True
    values = json.loads(os.environ[_CLUSTER_VARIABLE]) if cluster_task() else {}
    kind, index = cluster_task()
    return kind == "chief" or (index == 0 and "chief" not in values["cluster"])


def synchronise_statistics(model: DefendedModel) -> None:
    """Makes all batch normalisation use the statistics of the whole batch, over all replicas."""
    for part in (model.classifier, model.masker):
        for layer in [] if part is None else part.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


def check_shares(strategy: tf.distribute.Strategy, config: TrainingConfig) -> None:
    """Refuses settings whose loss the devices cannot compute on a share of the batch each.

    Args:
        strategy: Joins the devices.
        config: How they train.

    Raises:
        SfmError: If the batch cannot be shared evenly, a norm runs over all of it, or XLA is to
            compile what the devices tell each other.
    """
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise SfmError(
            f"Invalid batch_size {config.batch_size} on {replicas} devices; expected a multiple of "
            f"{replicas}."
        )
    if replicas > 1 and config.loss_reduction == "batch":
        raise SfmError(
            f"loss_reduction batch takes one norm over the batch, which {replicas} devices do not "
            "share; set loss_reduction to per_image or strategy to none."
        )
    if replicas > 1 and config.jit_compile:
        raise SfmError(
            f"jit_compile compiles for one device, not {replicas}; leave it out or set strategy to "
            "none."
        )
