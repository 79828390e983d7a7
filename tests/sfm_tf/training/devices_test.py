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

from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.training.devices import check_shares, cluster_task, is_chief, open_strategy
from sfm_tf.training.settings import TrainingConfig

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_EPOCHS = 2

# Trains small models, batch normalisation among their layers, and leaves their weights.
_PROGRAM = f"""
import json, os, pathlib, sys
import numpy as np, keras, tensorflow as tf
records, folder, output, strategy, devices, pause = sys.argv[1:7]
if int(devices) > 1:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices)
    )
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training import blueprint
from sfm_tf.training.training_loop import defence_plan
from sfm_tf.training.training import Workplace
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig

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
    if pause != "-" and (stage, str(done)) == tuple(pause.split(":")):
        import time
        time.sleep(600)

blueprint.build_classifier, blueprint.build_masker = classifier, masker
config = TrainingConfig(
    batch_size=32, pretraining_epochs=1, epochs={_EPOCHS}, augmentation="crop_flip",
    sparsity_weight=0.2, masker_gradient_norm=0.05, mixed_precision="float32",
)
workplace = Workplace.open(
    pathlib.Path(records), ModelConfig(), config, 3, pathlib.Path(folder), progress,
    TrainingExecutionConfig(strategy=strategy, checkpoint_steps=2),
)
model, history = workplace.train(
    "defence", workplace.blueprint.defended, defence_plan(config), 1
)
arrays = {{str(i): value for i, value in enumerate(model.get_weights())}}
np.savez(output, **arrays)
pathlib.Path(output).with_suffix(".json").write_text(json.dumps(history))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Some 160 real digits to train on: five steps to a pass."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=180, max_test_examples=5)
    ingest(config, 0, folder, lambda split, count: None)
    return folder


def _start(records, folder, output, strategy="none", devices=1, pause="-", cluster=None):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    environment.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1")
    environment.pop("TF_CONFIG", None)
    if cluster is not None:
        environment["TF_CONFIG"] = json.dumps(cluster)
    arguments = [records, folder, output, strategy, devices, pause]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
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


def _assert_equal(folder, name, tolerance=2e-4):
    with np.load(folder / "one.npz") as one, np.load(folder / f"{name}.npz") as other:
        assert one.files == other.files
        for key in one.files:
            np.testing.assert_allclose(other[key], one[key], rtol=tolerance, atol=tolerance)
    found, expected = (json.loads((folder / f"{n}.json").read_text()) for n in (name, "one"))
    for epoch, reference in zip(found, expected, strict=True):
        for part in ("training", "validation"):
            # The spread is of each device's images.
            names = set(reference[part]) - {"mask_spread"}
            figures = [{key: each[part][key] for key in names} for each in (epoch, reference)]
            assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """A folder with the weights after training on one device."""
    folder = tmp_path_factory.mktemp("trained")
    _finish(_start(records, folder / "one", folder / "one.npz"))
    return folder


def test_two_devices_learn_what_one_learns(records, trained):
    _finish(_start(records, trained / "mirrored", trained / "mirrored.npz", "mirrored", 2))
    _assert_equal(trained, "mirrored")


def _start_workers(records, folder, name, pause="-"):
    return [
        _start(records, folder / name, folder / f"{name}{i}.npz", "multi_worker", 1, pause, cluster)
        for i, cluster in enumerate(_clusters())
    ]


def test_two_processes_learn_what_one_learns_and_one_of_them_writes(records, trained):
    workers = _start_workers(records, trained, "workers")
    for worker in workers:
        _finish(worker)
    for name in ("workers0", "workers1"):
        _assert_equal(trained, name)
    checkpoints = list((trained / "workers" / "checkpoint" / "defence").iterdir())
    assert len(checkpoints) == 3


def test_workers_go_on_after_one_was_killed(records, trained):
    workers = _start_workers(records, trained, "killed", pause="alternation:5")
    checkpoints = trained / "killed" / "checkpoint" / "defence"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("epoch_00001_*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    workers = _start_workers(records, trained, "killed")
    words = [_finish(worker) for worker in workers]
    assert all("pretraining" not in output for output in words)
    _assert_equal(trained, "killed0")


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
        cluster_task()


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


def test_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(SfmError, match="batch_size 33 on 2 devices; expected a multiple of 2"):
        check_shares(_TwoDevices, TrainingConfig(batch_size=33))
    with pytest.raises(SfmError, match="loss_reduction batch takes one norm over the batch"):
        check_shares(_TwoDevices, TrainingConfig(loss_reduction="batch"))
    with pytest.raises(SfmError, match="jit_compile compiles for one device, not 2"):
        check_shares(_TwoDevices, TrainingConfig(jit_compile=True))
