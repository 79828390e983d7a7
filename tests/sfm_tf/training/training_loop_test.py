"""Tests of carrying out a plan: order of the passes, counts, resuming and stopping."""

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
    Epoch,
    Fitting,
    Passes,
    Split,
    StepWatch,
    adversarial_plan,
    check_finite,
    count_classifier_passes,
    count_passes,
    defence_plan,
    describe_collapse,
    source_plan,
)

_PRETRAINING = Epoch("pretraining", (Phase.CLASSIFIER,))


def test_alternation_follows_pre_training():
    plan = defence_plan(TrainingConfig(pretraining_epochs=2, epochs=3, alternation="epoch"))
    turn = Epoch("alternation", (Phase.CLASSIFIER, Phase.MASKER))
    assert plan == (_PRETRAINING, _PRETRAINING, turn, turn, turn)


def test_alternation_by_step_is_one_pass_for_both():
    config = TrainingConfig(pretraining_epochs=1, epochs=1, alternation="step")
    assert defence_plan(config) == (_PRETRAINING, Epoch("alternation", (Phase.BOTH,)))


def test_frozen_target_leaves_only_the_masker_to_train_after_pre_training():
    plan = defence_plan(TrainingConfig(pretraining_epochs=1, epochs=2, freeze_classifier=True))
    assert plan == (_PRETRAINING, *(Epoch("alternation", (Phase.MASKER,)),) * 2)


def test_ramp_rises_evenly_and_stays_at_the_whole_weight():
    plan = defence_plan(
        TrainingConfig(pretraining_epochs=1, epochs=6, sparsity_ramp_epochs=4), first_share=0.2
    )
    assert [epoch.sparsity_share for epoch in plan] == pytest.approx(
        [1.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_ramp_that_is_longer_than_the_training_is_cut():
    plan = defence_plan(
        TrainingConfig(pretraining_epochs=0, epochs=2, sparsity_ramp_epochs=4), first_share=0.0
    )
    assert [epoch.sparsity_share for epoch in plan] == [0.0, 0.25]


def test_source_is_plain_training():
    plan = source_plan(TrainingConfig(source_epochs=2))
    assert plan == (Epoch("source", (Phase.CLASSIFIER,)),) * 2


def test_adversarial_epochs_follow_pre_training_and_alternate_where_there_is_a_masker():
    config = TrainingConfig(pretraining_epochs=1, adversarial_epochs=2, alternation="epoch")
    alone = Epoch("adversarial", (Phase.CLASSIFIER,))
    assert adversarial_plan(config, has_masker=False) == (_PRETRAINING, alone, alone)
    turn = Epoch("adversarial_alternation", (Phase.CLASSIFIER, Phase.MASKER))
    assert adversarial_plan(config, has_masker=True) == (_PRETRAINING, turn, turn)


def test_adversarial_alternation_by_step_is_one_pass_for_both():
    config = TrainingConfig(pretraining_epochs=0, adversarial_epochs=1, alternation="step")
    (epoch,) = adversarial_plan(config, has_masker=True)
    assert epoch.phases == (Phase.BOTH,)


@pytest.mark.parametrize(("alternation", "expected"), [("epoch", 5), ("step", 5)])
def test_masker_passes_do_not_count_for_the_classifier(alternation, expected):
    config = TrainingConfig(pretraining_epochs=2, epochs=3, alternation=alternation)
    assert count_classifier_passes(defence_plan(config)) == expected


def test_passes_of_a_stage_are_counted():
    plan = defence_plan(TrainingConfig(pretraining_epochs=2, epochs=3, alternation="epoch"))
    assert [count_passes(plan, stage) for stage in ("pretraining", "alternation")] == [2, 6]


def _watch(reports):
    return StepWatch(
        lambda *report: reports.append(report),
        stage="alternation",
        epoch=3,
        earlier=40,
        total=100,
        validation={"bare_accuracy": 0.9},
    )


def test_reports_steps_of_the_stage_with_measured_and_validation_figures():
    reports = []
    watch = _watch(reports)
    watch.add(5, {"mask_loss": 2.0, "mask_mean": 0.5})
    watch.finish()
    figures = {"mask_loss": 2.0, "mask_mean": 0.5, "bare_accuracy": 0.9}
    assert reports == [("alternation", 45, 100, figures)]


def test_looks_at_steps_late_but_in_order_and_at_all_of_them():
    reports = []
    watch = _watch(reports)
    for step in range(1, 11):
        watch.add(step, {"mask_loss": float(step)})
    assert [report[1] for report in reports] == [41, 42, 43, 44, 45, 46]
    watch.finish()
    assert [report[1] for report in reports] == list(range(41, 51))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_naming_loss_step_and_epoch(value):
    reports = []
    watch = _watch(reports)
    message = f"mask_loss became {value} in step 5 of epoch 3 of alternation; lower masker_learning"
    watch.add(4, {"mask_loss": 1.0})
    watch.add(5, {"mask_loss": value})
    watch.add(6, {"mask_loss": value})
    with pytest.raises(SfmError, match=message):
        watch.finish()
    assert [report[1] for report in reports] == [44]


def test_classification_loss_names_its_own_remedy():
    with pytest.raises(SfmError, match=r"the validation; lower classifier_learning_rate, or set"):
        check_finite({"classification_loss": math.nan}, "the validation")


def test_finite_losses_pass():
    check_finite({"classification_loss": 1.0, "mask_loss": 0.0}, "the validation")


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
        "The mask hides what the classifier looks at (semantic loss 0.95 of 1, mean 0.400"
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
        sparsity_weight=0.1,
        semantic_weight=1.0,
        reconstruction_weight=1.0,
        loss_reduction="per_image",
        weight_decay=0.01,
    )
    trainer.compile(keras.optimizers.SGD(0.5))
    return trainer


def _batches(shares=None):
    options = {"batch_size": 6, "augmentation": "none", "seed": 0, "epoch": 0}
    return training_batches(_IMAGES, _LABELS, shares=shares, **options)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_takes_the_steps_that_fit_takes(jit_compile):
    trainer, fitted = _trainer(), _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy(), jit_compile=jit_compile)
    measured = list(passes.train(_batches))
    history = fitted.fit(_batches(), verbose=0, shuffle=False).history
    assert len(measured) == 3
    for pair in zip(trainer.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)
    mean = history["classification_loss"][0]
    assert float(measured[-1]["classification_loss"]) == pytest.approx(mean, rel=1e-6)
    assert passes.means()["classification_loss"] == pytest.approx(mean, rel=1e-6)


def test_evaluation_gives_means_over_all_images_whatever_was_measured_before():
    trainer = _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy())
    list(passes.train(_batches))
    batches = evaluation_batches(_IMAGES, _LABELS, 7)
    expected = trainer.evaluate(batches, return_dict=True, verbose=0)
    for _ in range(2):
        assert passes.evaluate(batches) == pytest.approx({k: float(v) for k, v in expected.items()})


def test_reset_begins_the_means_anew():
    trainer = _trainer()
    passes = Passes(trainer, tf.distribute.get_strategy())
    trainer.trackers["accuracy"].update_state([1.0])
    passes.reset()
    trainer.trackers["accuracy"].update_state([0.0])
    assert passes.means()["accuracy"] == 0.0


def test_steps_are_compiled_once_for_each_phase():
    trainer, calls = _trainer(), []
    passes = Passes(trainer, tf.distribute.get_strategy())
    step = trainer.train_step
    trainer.train_step = lambda data: calls.append(trainer.phase) or step(data)
    for phase in (Phase.CLASSIFIER, Phase.BOTH, Phase.CLASSIFIER, Phase.BOTH):
        trainer.phase = phase
        list(passes.train(_batches))
    assert calls == [Phase.CLASSIFIER, Phase.BOTH]


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


def _fitting_trainer(rate=0.05):
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
    trainer = _fitting_trainer(rate)
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
