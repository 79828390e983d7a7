"""Tests of the training loop: order of the passes, counts, resuming and stopping."""

import dataclasses
import math
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
from sfm_tf.training.batches import evaluation_batches, training_batches
from sfm_tf.training.checkpoints import Checkpoints
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training_logs import TrainingLogs
from sfm_tf.training.training_loop import (
    CompiledSteps,
    Epoch,
    Split,
    StepReporter,
    TrainingLoop,
    adversarial_schedule,
    check_finite,
    count_classifier_passes,
    count_passes,
    defence_schedule,
    describe_collapse,
    source_schedule,
)

_PRETRAINING = Epoch("pretraining", (Phase.CLASSIFIER,))
_IN_TURN = (Phase.CLASSIFIER, Phase.MASKER)


@pytest.mark.parametrize(
    ("changes", "phases"),
    [
        ({"alternation": "epoch"}, _IN_TURN),
        ({"alternation": "step"}, (Phase.BOTH,)),
        ({"freeze_classifier": True}, (Phase.MASKER,)),
    ],
)
def test_alternation_follows_pre_training(changes, phases):
    config = TrainingConfig(pretraining_epochs=2, epochs=3, **changes)
    schedule = defence_schedule(config)
    assert schedule == (_PRETRAINING,) * 2 + (Epoch("alternation", phases),) * 3
    assert count_classifier_passes(schedule) == (2 if "freeze_classifier" in changes else 5)
    counts = [count_passes(schedule, stage) for stage in ("pretraining", "alternation")]
    assert counts == [2, 3 * len(phases)]


@pytest.mark.parametrize(
    ("epochs", "first_share", "expected"),
    [(6, 0.2, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]), (2, 0.0, [0.0, 0.25])],
)
def test_ramp_rises_evenly_to_the_whole_weight_unless_the_training_is_shorter(
    epochs, first_share, expected
):
    config = TrainingConfig(pretraining_epochs=1, epochs=epochs, sparsity_ramp_epochs=4)
    schedule = defence_schedule(config, first_share)
    assert [epoch.sparsity_share for epoch in schedule] == pytest.approx([1.0, *expected])


def test_source_is_plain_training():
    schedule = source_schedule(TrainingConfig(source_epochs=2))
    assert schedule == (Epoch("source", (Phase.CLASSIFIER,)),) * 2


@pytest.mark.parametrize(("alternation", "phases"), [("epoch", _IN_TURN), ("step", (Phase.BOTH,))])
def test_adversarial_epochs_follow_pre_training_and_alternate_where_there_is_a_masker(
    alternation, phases
):
    config = TrainingConfig(pretraining_epochs=1, adversarial_epochs=2, alternation=alternation)
    alone = Epoch("adversarial", (Phase.CLASSIFIER,))
    assert adversarial_schedule(config, has_masker=False) == (_PRETRAINING, alone, alone)
    turn = Epoch("adversarial_alternation", phases)
    assert adversarial_schedule(config, has_masker=True) == (_PRETRAINING, turn, turn)


def test_steps_are_reported_late_but_in_order_and_all_of_them():
    reports = []
    reporter = StepReporter(lambda *report: reports.append(report))
    for step in range(1, 11):
        reporter.add(step, {"mask_loss": tf.constant(float(step))})
    assert reports == [(step, {"mask_loss": float(step)}) for step in range(1, 7)]
    reporter.flush()
    assert [step for step, _ in reports] == list(range(1, 11))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"mask_loss": math.nan}, "mask_loss became nan in the validation; lower masker_learning"),
        ({"mask_loss": math.inf}, "mask_loss became inf in the validation"),
        (
            {"classification_loss": math.nan},
            "the validation; lower classifier_learning_rate, or set mixed_precision to float32",
        ),
    ],
)
def test_loss_that_is_no_number_names_its_place_and_remedy(metrics, message):
    check_finite({"classification_loss": 1.0, "mask_loss": 0.0}, "the validation")
    with pytest.raises(SfmError, match=message):
        check_finite(metrics, "the validation")


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.001, 0.001, "zeros (mean 0.001, spread 0.001): raise semantic_weight"),
        (0.999, 0.002, "ones (mean 0.999, spread 0.002): raise sparsity_weight"),
    ],
)
def test_even_mask_at_an_end_names_the_weight_to_change(mean, spread, expected):
    metrics = {"mask_mean": mean, "mask_spread": spread, "semantic": 0.1}
    assert expected in describe_collapse(metrics)


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.5, 0.0), (0.01, 0.05), (0.99, 0.05), (0.02, 0.001), (0.98, 0.001)]
)
def test_other_masks_give_no_warning(mean, spread):
    metrics = {"mask_mean": mean, "mask_spread": spread, "semantic": 0.1}
    assert describe_collapse(metrics) == ""


def test_mask_that_hides_the_class_is_one_too_where_the_cosine_distance_says_so():
    metrics = {"mask_mean": 0.4, "mask_spread": 0.2, "semantic": 0.95}
    assert describe_collapse(metrics).startswith(
        "The mask hides what the classifier needs (semantic loss 0.95 of 1, mean 0.400"
    )
    # A mask near zeros, of the paper's weights with the norms over a batch, at 11 % accuracy.
    metrics = {"mask_mean": 0.021, "mask_spread": 0.057, "semantic": 0.758}
    assert "(semantic loss 0.76 of 1, mean 0.021" in describe_collapse(metrics)
    # A cross-entropy of as much is an ordinary one.
    assert describe_collapse(metrics, "cross_entropy") == ""


_IMAGES = np.random.default_rng(0).uniform(size=(20, 2, 2, 1)).astype(np.float32)
_LABELS = np.arange(20) % 3


def _trainer():
    inputs = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    trainer = SparseFeatureMaskerTrainer(
        DefendedModel(keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))),
        TrainingConfig(weight_decay=0.01),
    )
    trainer.compile(keras.optimizers.SGD(0.5))
    return trainer


def _batches(context=None):
    options = {"batch_size": 6, "augmentation": "none", "seed": 0, "epoch": 0}
    return training_batches(_IMAGES, _LABELS, context=context, **options)


def test_takes_the_steps_that_fit_takes():
    trainer, fitted = _trainer(), _trainer()
    steps = CompiledSteps(trainer, tf.distribute.get_strategy())
    measured = list(steps.train(_batches))
    history = fitted.fit(_batches(), verbose=0, shuffle=False).history
    assert len(measured) == 3
    for pair in zip(trainer.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)
    mean = history["classification_loss"][0]
    assert float(measured[-1]["classification_loss"]) == pytest.approx(mean, rel=1e-6)
    assert steps.means()["classification_loss"] == pytest.approx(mean, rel=1e-6)


def test_evaluation_gives_means_over_all_images_whatever_was_measured_before():
    trainer = _trainer()
    steps = CompiledSteps(trainer, tf.distribute.get_strategy())
    list(steps.train(_batches))
    batches = evaluation_batches(_IMAGES, _LABELS, 7)
    expected = trainer.evaluate(batches, return_dict=True, verbose=0)
    for _ in range(2):
        assert steps.evaluate(batches) == pytest.approx({k: float(v) for k, v in expected.items()})


def test_reset_begins_the_means_anew():
    trainer = _trainer()
    steps = CompiledSteps(trainer, tf.distribute.get_strategy())
    trainer.trackers["accuracy"].update_state([1.0])
    steps.reset()
    trainer.trackers["accuracy"].update_state([0.0])
    assert steps.means()["accuracy"] == 0.0


_SHAPE = (8, 8, 1)
_CONFIG = TrainingConfig(
    batch_size=8,
    pretraining_epochs=1,
    epochs=2,
    alternation="epoch",
    augmentation="crop",
    sparsity_weight=0.2,
    semantic_weight=3.0,
    weight_decay=0.0,
)


def _split(count, seed):
    """Images that are bright above or below the middle: two classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    images = generator.uniform(0.0, 0.4, (count, *_SHAPE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 0.5
    return Split(images, labels)


def _masked_trainer(config, rate):
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
        DefendedModel(classifier, keras.Model(inputs, convolution(inputs))), config
    )
    trainer.compile(keras.optimizers.SGD(rate, momentum=0.9), keras.optimizers.Adam(0.01))
    return trainer


def _loop(folder, progress=lambda *_: None, rate=0.05, config=_CONFIG, **execution):
    trainer = _masked_trainer(config, rate)
    return TrainingLoop(
        steps=CompiledSteps(trainer, tf.distribute.get_strategy()),
        schedule=defence_schedule(config),
        config=config,
        execution=TrainingExecutionConfig(**execution),
        training=_split(44, 0),
        validation=_split(20, 1),
        seed=5,
        checkpoints=Checkpoints(folder / "checkpoint", dataclasses.asdict(config)),
        logs=TrainingLogs(folder / "logs"),
        progress=progress,
    )


def _weights(loop):
    return loop.steps.trainer.get_weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run: its folder, its loop, its history and its progress reports."""
    folder, reports, traced = tmp_path_factory.mktemp("finished"), [], []
    loop = _loop(folder, lambda *report: reports.append(report))
    trainer = loop.steps.trainer
    step = trainer.train_step

    def counted(data):
        traced.append((trainer.is_pretraining, trainer.phase))
        return step(data)

    trainer.train_step = counted
    history = loop.run()
    # Each phase is compiled once.
    assert len(traced) == len(set(traced)) == 3
    return folder, loop, history, reports


def test_progress_counts_the_steps_of_each_stage(finished):
    # 44 images in batches of 8 are 5 steps: one pass of pre-training, four of alternation.
    counts = [report[:3] for report in finished[3]]
    assert counts == [("pretraining", done, 5) for done in range(1, 6)] + [
        ("alternation", done, 20) for done in range(1, 21)
    ]


def test_passes_alternate_between_classifier_and_masker(finished):
    is_masker = ["mask_loss" in report[3] and "accuracy" not in report[3] for report in finished[3]]
    assert is_masker == [False] * 10 + [True] * 5 + [False] * 5 + [True] * 5


def test_history_and_log_have_the_figures_of_each_epoch(finished):
    history = finished[2]
    assert [epoch["stage"] for epoch in history] == ["pretraining", "alternation", "alternation"]
    assert set(history[0]["training"]) == {"classification_loss", "accuracy"}
    assert {"classification_loss", "accuracy", "mask_loss"} <= set(history[1]["training"])
    for epoch in history:
        assert {"bare_accuracy", "defended_accuracy", "mask_mean"} <= set(epoch["validation"])
    phases = [set(epoch["seconds"]) for epoch in history]
    assert phases == [{"classifier"}, {"classifier", "masker"}, {"classifier", "masker"}]
    assert all(value > 0 for epoch in history for value in epoch["seconds"].values())
    (path,) = (finished[0] / "logs").glob("events.out.tfevents.*")
    for name in (b"validation/defended_accuracy", b"masks/mask", b"masks/masked"):
        assert name in path.read_bytes()


def test_it_learns(finished):
    validation = finished[2][-1]["validation"]
    assert validation["bare_accuracy"] >= 0.9
    assert validation["mask_loss"] < finished[2][0]["validation"]["mask_loss"]


class _Interruption(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(("interrupted_at", "checkpoint_steps"), [(3, 0), (10, 2)])
def test_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path, finished, interrupted_at, checkpoint_steps
):
    def interrupt(stage, done, *_):
        if (stage, done) == ("alternation", interrupted_at):
            raise _Interruption

    with pytest.raises(_Interruption):
        _loop(tmp_path, interrupt, checkpoint_steps=checkpoint_steps).run()
    names = sorted(path.name for path in (tmp_path / "checkpoint").glob("epoch*"))
    within = ["epoch_00001_1_00000002.npz", "epoch_00001_1_00000004.npz"]
    assert names == (within if checkpoint_steps else ["epoch_00001.npz"])
    steps = []
    resumed = _loop(tmp_path, lambda *report: steps.append(report[:2]), checkpoint_steps=2)
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
    whole = _loop(tmp_path / "whole", config=config)
    expected = whole.run()
    place, steps = tmp_path / "resumed", []
    with pytest.raises(_Interruption):
        _loop(place, interrupt, config=config, checkpoint_steps=2).run()
    resumed = _loop(place, lambda *report: steps.append(report[:2]), config=config)
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
import training_loop_test
folder = pathlib.Path(sys.argv[2])
report = lambda stage, done, total, metrics: print(stage, done, flush=True)
loop = training_loop_test._loop(folder, report, checkpoint_steps=2)
history = loop.run()
weights = training_loop_test._weights(loop)
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


@pytest.mark.slow
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


def test_share_of_the_sparsity_weight_follows_the_schedule(tmp_path):
    shares = []
    config = dataclasses.replace(_CONFIG, epochs=3, sparsity_ramp_epochs=2, alternation="step")

    def note(stage, done, *_):
        if stage == "alternation" and done % 5 == 1:
            shares.append(float(loop.steps.trainer.sparsity_share.numpy()))

    loop = _loop(tmp_path, note, config=config)
    loop = dataclasses.replace(loop, schedule=defence_schedule(config, 0.5))
    loop.run()
    assert shares == [0.5, 0.75, 1.0]


def test_best_epoch_can_be_what_is_kept(tmp_path):
    config = dataclasses.replace(_CONFIG, kept_epoch="best")
    loop = _loop(tmp_path, config=config, rate=3.0)
    history = loop.run()
    best = max(epoch["validation"]["defended_accuracy"] for epoch in history[1:])
    split = loop.validation
    logits = loop.steps.trainer.defended(split.images).numpy()
    assert np.mean(logits.argmax(1) == split.labels) == pytest.approx(best, abs=1e-6)


def test_mask_that_collapses_is_a_failure_if_asked_to(tmp_path):
    config = dataclasses.replace(_CONFIG, sparsity_weight=10.0, semantic_weight=0.0)
    loop = _loop(tmp_path, config=config, fail_on_collapse=True)
    loop.steps.trainer.masker_optimizer.learning_rate.assign(0.5)
    with pytest.raises(SfmError, match="Epoch 2 of alternation: The mask collapsed to zeros"):
        loop.run()


def test_finished_training_is_not_trained_again(finished):
    folder, loop, history, _ = finished
    steps = []
    again = _loop(folder, lambda *report: steps.append(report))
    assert again.run() == history
    assert steps == []
    for pair in zip(_weights(again), _weights(loop), strict=True):
        np.testing.assert_array_equal(*pair)


def test_loss_that_diverges_stops_naming_its_step(tmp_path):
    message = r"classification_loss became (nan|inf) in step \d of epoch 1 of pretraining"
    with pytest.raises(SfmError, match=message):
        _loop(tmp_path, rate=1e38).run()
    assert not (tmp_path / "checkpoint").exists()
