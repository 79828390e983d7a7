"""Tests of carrying out a plan: order of the passes, counts, resuming and stopping."""

import dataclasses

import keras
import numpy as np
import pytest

from sfm_tf.config import TrainingConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.checkpoints import Checkpoints
from sfm_tf.training.fitting import Fitting, Split
from sfm_tf.training.plan import defence_plan
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer

_SHAPE = (8, 8, 1)
_CONFIG = TrainingConfig(
    batch_size=8, pretraining_epochs=1, epochs=2, augmentation="crop", sparsity_weight=0.2
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


def _fitting(folder, progress=lambda *_: None, rate=0.05):
    return Fitting(
        trainer=_trainer(rate),
        plan=defence_plan(_CONFIG),
        config=_CONFIG,
        training=_split(44, 0),
        validation=_split(20, 1),
        seed=5,
        checkpoints=Checkpoints(folder / "checkpoint", dataclasses.asdict(_CONFIG)),
        logs=folder / "logs",
        progress=progress,
    )


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
    assert b"validation/defended_accuracy" in path.read_bytes()


class _Interruption(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("interrupted_at", [("alternation", 3), ("alternation", 17)])
def test_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path, finished, interrupted_at
):
    def interrupt(stage, done, *_):
        if (stage, done) == interrupted_at:
            raise _Interruption

    with pytest.raises(_Interruption):
        _fitting(tmp_path, interrupt).run()
    stages = []
    resumed = _fitting(tmp_path, lambda stage, *_: stages.append(stage))
    history = resumed.run()
    assert "pretraining" not in stages
    assert len(history) == 3
    # TensorFlow's threads may add in another order; everything else is the same.
    expected = finished[1].trainer.get_weights()
    for pair in zip(resumed.trainer.get_weights(), expected, strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


def test_finished_training_is_not_trained_again(finished):
    folder, fitting, history, _ = finished
    steps = []
    again = _fitting(folder, lambda *report: steps.append(report))
    assert again.run() == history
    assert steps == []
    for pair in zip(again.trainer.get_weights(), fitting.trainer.get_weights(), strict=True):
        np.testing.assert_array_equal(*pair)


def test_loss_that_diverges_stops_naming_its_step(tmp_path):
    message = r"classification_loss became (nan|inf) in step \d of epoch 1 of pretraining"
    with pytest.raises(SfmError, match=message):
        _fitting(tmp_path, rate=1e38).run()
    assert not (tmp_path / "checkpoint").exists()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
