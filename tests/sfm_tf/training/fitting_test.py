"""Tests of carrying out a plan: order of the passes, counts, resuming and stopping."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.checkpoints import Checkpoints
from sfm_tf.training.fitting import Fitting, Split
from sfm_tf.training.passes import Passes
from sfm_tf.training.plan import defence_plan
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer
from sfm_tf.training.training_logs import TrainingLogs
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig

_SHAPE = (8, 8, 1)
_CONFIG = TrainingConfig(
    batch_size=8,
    pretraining_epochs=1,
    epochs=2,
    alternation="epoch",
    augmentation="crop",
    sparsity_weight=0.2,
)


def _split(count, seed):
    """Images that are bright above or below the middle: two classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    images = generator.uniform(0.0, 0.4, (count, *_SHAPE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 0.5
    return Split(images, labels)


def _trainer(rate=0.05):
    inputs = keras.Input(_SHAPE)
    features = keras.layers.BatchNormalization()(inputs)
    initializer = keras.initializers.GlorotUniform(seed=1)
    dense = keras.layers.Dense(2, kernel_initializer=initializer)
    classifier = keras.Model(inputs, dense(keras.layers.Flatten()(features)))
    inputs = keras.Input(_SHAPE)
    initializer = keras.initializers.GlorotUniform(seed=2)
    convolution = keras.layers.Conv2D(
        1, 3, padding="same", activation="sigmoid", kernel_initializer=initializer
    )
    trainer = SparseFeatureMaskerTrainer(
        DefendedModel(classifier, keras.Model(inputs, convolution(inputs))),
        sparsity_weight=0.2,
        semantic_weight=3.0,
        reconstruction_weight=1.0,
        loss_reduction="per_image",
        weight_decay=0.0,
    )
    trainer.compile(keras.optimizers.SGD(rate, momentum=0.9), keras.optimizers.Adam(0.01))
    return trainer


def _fitting(folder, progress=lambda *_: None, rate=0.05, config=_CONFIG, **execution):
    trainer = _trainer(rate)
    return Fitting(
        passes=Passes(trainer, tf.distribute.get_strategy()),
        plan=defence_plan(config),
        config=config,
        execution=TrainingExecutionConfig(**execution),
        training=_split(44, 0),
        validation=_split(20, 1),
        seed=5,
        checkpoints=Checkpoints(folder / "checkpoint", dataclasses.asdict(config)),
        logs=TrainingLogs(folder / "logs"),
        progress=progress,
    )


def _weights(fitting):
    return fitting.passes.trainer.get_weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run: its folder, its fitting, its history and its progress reports."""
    folder, reports = tmp_path_factory.mktemp("finished"), []
    fitting = _fitting(folder, lambda *report: reports.append(report))
    return folder, fitting, fitting.run(), reports


def test_progress_counts_the_steps_of_each_stage(finished):
    # 44 images in batches of 8 are 5 steps: one pass of pre-training, four of alternation.
    counts = [report[:3] for report in finished[3]]
    assert counts == [("pretraining", done, 5) for done in range(1, 6)] + [
        ("alternation", done, 20) for done in range(1, 21)
    ]


def test_passes_alternate_between_classifier_and_masker(finished):
    is_masker = ["mask_loss" in report[3] and "accuracy" not in report[3] for report in finished[3]]
    assert is_masker == [False] * 10 + [True] * 5 + [False] * 5 + [True] * 5


def test_history_has_training_and_validation_figures_of_each_epoch(finished):
    history = finished[2]
    assert [epoch["stage"] for epoch in history] == ["pretraining", "alternation", "alternation"]
    assert set(history[0]["training"]) == {"classification_loss", "accuracy"}
    assert {"classification_loss", "accuracy", "mask_loss"} <= set(history[1]["training"])
    for epoch in history:
        assert {"bare_accuracy", "defended_accuracy", "mask_mean"} <= set(epoch["validation"])


def test_history_has_the_seconds_of_each_pass(finished):
    phases = [set(epoch["seconds"]) for epoch in finished[2]]
    assert phases == [{"classifier"}, {"classifier", "masker"}, {"classifier", "masker"}]
    assert all(value > 0 for epoch in finished[2] for value in epoch["seconds"].values())


def test_it_learns(finished):
    validation = finished[2][-1]["validation"]
    assert validation["bare_accuracy"] >= 0.9
    assert validation["mask_loss"] < finished[2][0]["validation"]["mask_loss"]


def test_tensorboard_can_read_the_log(finished):
    (path,) = (finished[0] / "logs").glob("events.out.tfevents.*")
    for name in (b"validation/defended_accuracy", b"masks/mask", b"masks/masked"):
        assert name in path.read_bytes()


class _Interruption(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(("interrupted_at", "checkpoint_steps"), [(3, 0), (9, 2), (17, 2)])
def test_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path, finished, interrupted_at, checkpoint_steps
):
    def interrupt(stage, done, *_):
        if (stage, done) == ("alternation", interrupted_at):
            raise _Interruption

    with pytest.raises(_Interruption):
        _fitting(tmp_path, interrupt, checkpoint_steps=checkpoint_steps).run()
    steps = []
    resumed = _fitting(tmp_path, lambda *report: steps.append(report[:2]), checkpoint_steps=2)
    history = resumed.run()
    # Ten steps to an epoch, five to a pass, in which 2 and 4 are checkpoints.
    done = interrupted_at - 1
    first = done // 10 * 10 if checkpoint_steps == 0 else done // 5 * 5 + done % 5 // 2 * 2
    assert steps[0][0] == "alternation"
    assert first - 4 <= steps[0][1] - 1 <= first
    for epoch, expected in zip(history, finished[2], strict=True):
        for part in ("training", "validation"):
            assert epoch[part] == pytest.approx(expected[part], rel=1e-4, abs=1e-5)
    # TensorFlow's threads may add in another order; everything else is the same.
    for pair in zip(_weights(resumed), _weights(finished[1]), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


def test_interrupted_alternation_by_steps_goes_on_within_its_epoch(tmp_path):
    def interrupt(stage, done, *_):
        if (stage, done) == ("alternation", 8):
            raise _Interruption

    config = dataclasses.replace(_CONFIG, alternation="step")
    whole = _fitting(tmp_path / "whole", config=config)
    expected = whole.run()
    place, steps = tmp_path / "resumed", []
    with pytest.raises(_Interruption):
        _fitting(place, interrupt, config=config, checkpoint_steps=2).run()
    resumed = _fitting(place, lambda *report: steps.append(report[:2]), config=config)
    history = resumed.run()
    # Five steps to an epoch, of which 2 and 4 are checkpoints: the seventh is the last one kept.
    assert steps == [("alternation", done) for done in (8, 9, 10)]
    assert history[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-4)
    for pair in zip(_weights(resumed), _weights(whole), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


# Trains in a process of its own, on one core, and leaves weights and history.
_PROGRAM = """
import json, pathlib, sys, numpy
sys.path.insert(0, sys.argv[1])
import fitting_test
folder = pathlib.Path(sys.argv[2])
report = lambda stage, done, total, metrics: print(stage, done, flush=True)
fitting = fitting_test._fitting(folder, report, checkpoint_steps=2)
history = fitting.run()
weights = fitting_test._weights(fitting)
numpy.savez(folder / "weights.npz", **{str(i): value for i, value in enumerate(weights)})
timeless = [{name: epoch[name] for name in epoch if name != "seconds"} for epoch in history]
(folder / "history.json").write_text(json.dumps(timeless))
"""


def _run_process(folder, kill_at=None):
    """Trains in a process that is killed after `kill_at` steps of it; returns whether it ended."""
    folder.mkdir(exist_ok=True)
    here = pathlib.Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2]), "CUDA_VISIBLE_DEVICES": "-1"}
    environment.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(here), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for steps, _ in enumerate(process.stdout, 1):
            if steps == kill_at:
                process.kill()
                break
    return process.returncode == 0


def test_training_killed_at_random_steps_ends_with_the_same_bits(tmp_path):
    assert _run_process(tmp_path / "whole")
    generator = np.random.default_rng(time.time_ns())
    for kill_at in generator.integers(1, 12, 3):
        assert not _run_process(tmp_path / "killed", kill_at), kill_at
    assert _run_process(tmp_path / "killed")
    histories = [(tmp_path / name / "history.json").read_text() for name in ("whole", "killed")]
    assert histories[0] == histories[1]
    with (
        np.load(tmp_path / "whole" / "weights.npz") as whole,
        np.load(tmp_path / "killed" / "weights.npz") as killed,
    ):
        assert whole.files == killed.files
        for key in whole.files:
            np.testing.assert_array_equal(killed[key], whole[key])


def test_checkpoint_within_a_pass_is_gone_on_from(tmp_path):
    def interrupt(stage, done, *_):
        if (stage, done) == ("alternation", 10):
            raise _Interruption

    with pytest.raises(_Interruption):
        _fitting(tmp_path, interrupt, checkpoint_steps=2).run()
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["best.npz", "epoch_00001_1_00000002.npz", "epoch_00001_1_00000004.npz"]
    steps = []
    _fitting(tmp_path, lambda *report: steps.append(report[:2])).run()
    assert steps[0] == ("alternation", 10)


def test_each_phase_is_traced_once(tmp_path):
    fitting, calls = _fitting(tmp_path), []
    trainer = fitting.passes.trainer
    step = trainer.train_step

    def counted(data):
        calls.append((trainer.is_pretraining, trainer.phase))
        return step(data)

    trainer.train_step = counted
    fitting.run()
    assert len(calls) == len(set(calls)) == 3


def test_best_epoch_can_be_what_is_kept(tmp_path):
    config = dataclasses.replace(_CONFIG, kept_epoch="best")
    fitting = _fitting(tmp_path, config=config, rate=3.0)
    history = fitting.run()
    best = max(epoch["validation"]["defended_accuracy"] for epoch in history[1:])
    split = fitting.validation
    logits = fitting.passes.trainer.defended(split.images).numpy()
    assert np.mean(logits.argmax(1) == split.labels) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_mask_that_collapses_is_a_warning_or_a_failure(tmp_path, fails):
    fitting = _fitting(tmp_path, fail_on_collapse=fails)
    trainer = fitting.passes.trainer
    trainer.sparsity_weight, trainer.semantic_weight = 10.0, 0.0
    trainer.masker_optimizer.learning_rate.assign(0.5)
    if not fails:
        assert fitting.run()[-1]["validation"]["mask_mean"] < 0.02
        return
    with pytest.raises(SfmError, match="Epoch 2 of alternation: The mask collapsed to zeros"):
        fitting.run()


def test_finished_training_is_not_trained_again(finished):
    folder, fitting, history, _ = finished
    steps = []
    again = _fitting(folder, lambda *report: steps.append(report))
    assert again.run() == history
    assert steps == []
    for pair in zip(_weights(again), _weights(fitting), strict=True):
        np.testing.assert_array_equal(*pair)


def test_loss_that_diverges_stops_naming_its_step(tmp_path):
    message = r"classification_loss became (nan|inf) in step \d of epoch 1 of pretraining"
    with pytest.raises(SfmError, match=message):
        _fitting(tmp_path, rate=1e38).run()
    assert not (tmp_path / "checkpoint").exists()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
