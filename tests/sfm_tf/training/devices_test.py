"""Tests of several devices against one: logical CPUs, and processes on the loopback."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.training.devices import check_devices, is_chief, open_strategy, read_cluster
from sfm_tf.training.settings import TrainingConfig

_ROOT = pathlib.Path(__file__).resolve().parents[3]

# Trains small models, with batch normalisation, by one strategy after the other; keeps weights.
_PROGRAM = """
import json, pathlib, sys, time
import numpy as np, keras, tensorflow as tf
records, folder, pause, *names = sys.argv[1:]
if "mirrored" in names:
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training import model_building
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig
from sfm_tf.training.training import TrainingSession
from sfm_tf.training.training_loop import defence_schedule

def classifier(name, shape, classes, width, mean, variance, seed):
    inputs = keras.Input(shape)
    start = keras.initializers.GlorotUniform(seed=seed)
    features = keras.layers.Conv2D(4, 3, kernel_initializer=start)(inputs)
    features = keras.layers.BatchNormalization()(features)
    dense = keras.layers.Dense(classes, kernel_initializer=start)
    return keras.Model(inputs, dense(keras.layers.Flatten()(features)))

def masker(shape, width, depth, seed, bias):
    inputs = keras.Input(shape)
    start = keras.initializers.GlorotUniform(seed=seed)
    features = keras.layers.Conv2D(2, 3, padding="same", kernel_initializer=start)(inputs)
    features = keras.layers.BatchNormalization()(features)
    mask = keras.layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=start)
    return keras.Model(inputs, mask(features))

def progress(stage, done, total, metrics):
    print(stage, done, flush=True)
    if pause == f"{stage}:{done}":
        time.sleep(600)

model_building.build_classifier, model_building.build_masker = classifier, masker
config = TrainingConfig(
    batch_size=28, pretraining_epochs=1, epochs=2, augmentation="crop_flip",
    sparsity_weight=0.2, masker_gradient_norm=0.05, mixed_precision="float32",
)
for name in names:
    place = pathlib.Path(folder) / name
    session = TrainingSession.open(
        pathlib.Path(records), ModelConfig(), config, 3, place, progress,
        TrainingExecutionConfig(strategy=name, checkpoint_steps=2),
    )
    model, history = session.train(
        "defence", session.factory.defended, defence_schedule(config), 1
    )
    place = place if session.is_writer else place / "other_worker"
    place.mkdir(exist_ok=True)
    arrays = {str(i): value for i, value in enumerate(model.get_weights())}
    np.savez(place / "weights.npz", **arrays)
    (place / "history.json").write_text(json.dumps(history))
"""


def _start(records, folder, *strategies, pause="-", cluster=None):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    environment.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1")
    environment.pop("TF_CONFIG", None)
    if cluster is not None:
        environment["TF_CONFIG"] = json.dumps(cluster)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(records.folder), str(folder), pause, *strategies],
        env=environment,
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return output


def _clusters(count=2):
    """What TF_CONFIG says to each of the workers, on ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    cluster = {"worker": addresses}
    return [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(count)]


def _assert_equal(found, expected):
    with np.load(found / "weights.npz") as some, np.load(expected / "weights.npz") as others:
        assert some.files == others.files
        for key in some.files:
            np.testing.assert_allclose(some[key], others[key], rtol=2e-4, atol=2e-4)
    histories = (json.loads((each / "history.json").read_text()) for each in (found, expected))
    for epoch, reference in zip(*histories, strict=True):
        for part in ("training", "validation"):
            # The spread is of each device's images.
            names = set(reference[part]) - {"mask_spread"}
            figures = [{key: each[part][key] for key in names} for each in (epoch, reference)]
            assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """A folder with what one device learns, and what two learn."""
    folder = tmp_path_factory.mktemp("trained")
    _finish(_start(records, folder, "none", "mirrored"))
    return folder


def test_two_devices_learn_what_one_learns(trained):
    _assert_equal(trained / "mirrored", trained / "none")


# Prints the semantic loss of a mask of ones on two devices, by the statistics in the arguments.
_MASK_OF_ONES = """
import sys
import numpy as np, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.devices import open_strategy, synchronise_statistics
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training_loop import CompiledSteps

def batches(context):
    parts = np.random.default_rng(0).uniform(size=(2, 3, 4, 4, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((parts, np.array([[0, 1, 2], [1, 2, 0]])))

strategy = open_strategy("mirrored")
for statistics in sys.argv[1:]:
    with strategy.scope():
        inputs = keras.Input((4, 4, 1))
        features = keras.layers.BatchNormalization()(inputs)
        logits = keras.layers.Dense(3)(keras.layers.Flatten()(features))
        ones = keras.layers.Conv2D(1, 1, activation="sigmoid", bias_initializer=lambda *a, **k: 1e3)
        model = DefendedModel(keras.Model(inputs, logits), keras.Model(inputs, ones(inputs)))
        synchronise_statistics(model)
        config = TrainingConfig(batch_size=6, target_statistics=statistics)
        trainer = SparseFeatureMaskerTrainer(model, config)
        trainer.compile(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5))
    trainer.phase = Phase.BOTH
    assert strategy.num_replicas_in_sync == 2
    steps = CompiledSteps(trainer, strategy)
    print(len(list(steps.train(batches))), steps.means()["mask_mean"], steps.means()["semantic"])
"""


def test_mask_of_ones_has_no_semantic_loss_on_two_devices():
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", _MASK_OF_ONES, "moving", "batch"]
    lines = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found = [[float(word) for word in line.split()] for line in lines]
    np.testing.assert_allclose(found, [[1, 1.0, 0.0]] * 2, atol=1e-6)


def _start_workers(records, folder, pause="-"):
    return [
        _start(records, folder, "multi_worker", pause=pause, cluster=cluster)
        for cluster in _clusters()
    ]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_also_after_they_were_killed(
    records, trained, tmp_path
):
    workers = _start_workers(records, tmp_path, pause="alternation:3")
    checkpoints = tmp_path / "multi_worker" / "checkpoint" / "defence"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("epoch_00001_*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    words = [_finish(worker) for worker in _start_workers(records, tmp_path)]
    assert all("pretraining" not in output for output in words)
    for found in (tmp_path / "multi_worker", tmp_path / "multi_worker" / "other_worker"):
        _assert_equal(found, trained / "none")
    assert len(list(checkpoints.iterdir())) == 3


def test_process_without_a_cluster_is_told_what_it_lacks(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(SfmError, match=r"TF_CONFIG is ''; strategy multi_worker expects in it"):
        open_strategy("multi_worker")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_cluster_that_is_not_understood_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(SfmError, match="strategy multi_worker expects"):
        read_cluster()


def test_first_worker_is_the_one_that_writes_unless_there_is_a_chief(monkeypatch):
    cluster = {"worker": ["a:1", "b:1"]}

    def task(kind, index, **more):
        value = {"cluster": {**cluster, **more}, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(value))
        return is_chief("multi_worker")

    assert [task("worker", 0), task("worker", 1)] == [True, False]
    with_chief = [task("chief", 0, chief=["c:1"]), task("worker", 0, chief=["c:1"])]
    assert with_chief == [True, False]
    assert is_chief("mirrored")


class _TwoDevices:
    num_replicas_in_sync = 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 33}, "batch_size 33 on 2 devices; expected a multiple of 2"),
        ({"loss_reduction": "batch"}, "loss_reduction=batch takes one norm over the whole batch"),
        ({"jit_compile": True}, "jit_compile works on one device only, not on 2"),
    ],
)
def test_settings_that_two_devices_cannot_follow_are_refused(settings, message):
    with pytest.raises(SfmError, match=message):
        check_devices(_TwoDevices, TrainingConfig(**settings))
