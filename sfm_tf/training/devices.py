"""The devices that a training runs on, as a distribution strategy of TensorFlow."""

import json
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.settings import TrainingConfig

_CLUSTER_VARIABLE = "TF_CONFIG"
_SECONDS_WITHOUT_ANSWER = 120.0
"""Time without an answer from another worker after which a worker gives up."""


def _open_mirrored() -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _open_multi_worker() -> tf.distribute.Strategy:
    read_cluster()
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
            where it has none; `multi_worker` for the devices of all processes that the environment
            variable TF_CONFIG lists, this one among them. `multi_worker` has to come before any
            computation of the process, and waits for the others.

    Raises:
        SfmError: If TF_CONFIG is missing or malformed, or the workers cannot be joined.
    """
    return _OPENERS[name]()


def read_cluster() -> tuple[Mapping[str, Sequence[str]], str, int]:
    """Returns the addresses in TF_CONFIG by type of task, and the type and index of this process.

    Raises:
        SfmError: If the variable is missing or malformed.
    """
    text = os.environ.get(_CLUSTER_VARIABLE, "")
    try:
        values = json.loads(text)
        cluster, kind = values["cluster"], values["task"]["type"]
        index = int(values["task"]["index"])
        cluster[kind][index]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SfmError(
            f"{_CLUSTER_VARIABLE} is {text!r}; strategy multi_worker expects in it, for example, "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ) from error
    return cluster, kind, index


def is_chief(name: str) -> bool:
    """Tells whether this process writes the files: the only process, the chief, or worker 0.

    Args:
        name: Name of the strategy.

    Raises:
        SfmError: If it is `multi_worker` and TF_CONFIG is missing or malformed.
    """
    if name != "multi_worker":
        return True
    cluster, kind, index = read_cluster()
    return kind == "chief" or (index == 0 and "chief" not in cluster)


def synchronise_statistics(model: DefendedModel) -> None:
    """Makes batch normalisation use the statistics of the whole batch, over all devices."""
    for part in (model.classifier, model.masker):
        for layer in [] if part is None else part.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


def check_devices(strategy: tf.distribute.Strategy, config: TrainingConfig) -> None:
    """Refuses settings with which several devices would not learn what one learns.

    Args:
        strategy: Joins the devices.
        config: How they train.

    Raises:
        SfmError: If a batch cannot be split evenly, the loss takes a norm over the whole batch, or
            XLA is asked for, which cannot compile the exchange between devices.
    """
    devices = strategy.num_replicas_in_sync
    if config.batch_size % devices:
        raise SfmError(
            f"Invalid batch_size {config.batch_size} on {devices} devices; expected a multiple of "
            f"{devices}."
        )
    if devices > 1 and config.loss_reduction == "batch":
        raise SfmError(
            f"loss_reduction=batch takes one norm over the whole batch, but {devices} devices each "
            "see only a part; set loss_reduction to per_image or strategy to none."
        )
    if devices > 1 and config.jit_compile:
        raise SfmError(
            f"jit_compile works on one device only, not on {devices}; remove it or set strategy to "
            "none."
        )
