"""Tests of the checkpoints: exact round trips, and damage of every kind."""

import io
import logging as standard_logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.checkpoints import Checkpoints, Position, best_epoch
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer

_SHAPE = (2, 2, 1)
_SETTINGS = {"seed": 0, "epochs": 3, "input_shape": (2, 2, 1)}


def _trainer(units=3):
    inputs = keras.Input(_SHAPE)
    classifier = keras.Model(inputs, keras.layers.Dense(units)(keras.layers.Flatten()(inputs)))
    inputs = keras.Input(_SHAPE)
    masker = keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(inputs))
    trainer = SparseFeatureMaskerTrainer(
        DefendedModel(classifier, masker), TrainingConfig(semantic_weight=1.0)
    )
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01))
    return trainer


def _step(trainer):
    images = np.random.default_rng(0).uniform(size=(4, *_SHAPE)).astype(np.float32)
    trainer.phase = Phase.BOTH
    trainer.fit(tf.data.Dataset.from_tensors((images, [0, 1, 2, 0])), verbose=0, shuffle=False)


def _state(trainer):
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return [v.numpy().copy() for v in [*variables, *trainer.masker_optimizer.variables]]


def _history(length):
    measured = [{"defended_accuracy": 0.1 * i} for i in range(length)]
    return [{"stage": "alternation", "validation": each} for each in measured]


def _epochs(count):
    return Position(_history(count))


def _save_epochs(folder, count):
    """Saves after each of `count` epochs of one training; returns its states."""
    checkpoints, trainer, states = Checkpoints(folder, _SETTINGS), _trainer(), []
    for epoch in range(count):
        trainer.defended.classifier.layers[-1].bias.assign([epoch, 0.0, 0.0])
        checkpoints.save(trainer.state, _epochs(epoch + 1))
        states.append(_state(trainer))
    return states


def _assert_restores(folder, state, epochs):
    trainer = _trainer()
    assert Checkpoints(folder, _SETTINGS).restore(trainer.state) == _epochs(epochs)
    for pair in zip(_state(trainer), state, strict=True):
        np.testing.assert_array_equal(*pair)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    uninterrupted, resumed = _trainer(), _trainer()
    _step(uninterrupted)
    checkpoints = Checkpoints(tmp_path / "new" / "folder", _SETTINGS)
    checkpoints.save(uninterrupted.state, _epochs(1))
    assert checkpoints.restore(resumed.state) == _epochs(1)
    for trainer in (uninterrupted, resumed):
        _step(trainer)
    # Weights, momentum, both of Adam's moments, step counts and phase.
    for pair in zip(_state(resumed), _state(uninterrupted), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-6, atol=1e-7)


def test_newest_is_restored_and_two_are_kept(tmp_path):
    states = _save_epochs(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.npz",
        "epoch_00003.npz",
        "epoch_00004.npz",
    ]
    _assert_restores(tmp_path, states[-1], 4)


def test_position_within_an_epoch_comes_after_that_epoch_s_begin_and_before_its_end(tmp_path):
    positions = [
        Position(_history(1)),
        Position(_history(1), step=7),
        Position(_history(1), step=120),
        Position(_history(1), passes=1, training={"accuracy": 0.5}, seconds={"classifier": 2.0}),
        Position(_history(1), passes=1, step=3, training={"accuracy": 0.5}),
        Position(_history(2)),
    ]
    checkpoints = Checkpoints(tmp_path, _SETTINGS, kept=9)
    for position in positions[::-1]:
        checkpoints.save(_trainer().state, position)
    for position in positions[::-1]:
        assert checkpoints.restore(_trainer().state) == position
        (tmp_path / position.name).unlink()


def test_means_that_were_measured_so_far_are_kept(tmp_path):
    trainer, resumed = _trainer(), _trainer()
    trainer.trackers["accuracy"].update_state([0.0, 1.0, 1.0])
    Checkpoints(tmp_path, _SETTINGS).save(trainer.state, Position([], step=3))
    Checkpoints(tmp_path, _SETTINGS).restore(resumed.state)
    resumed.trackers["accuracy"].update_state([0.0])
    assert float(resumed.trackers["accuracy"].result()) == 0.5


def test_best_epoch_is_the_first_best_of_the_last_stage():
    accuracies = [("pretraining", 0.9), ("alternation", 0.5), ("alternation", 0.7)]
    accuracies += [("alternation", 0.7), ("alternation", 0.6)]
    history = [{"stage": s, "validation": {"defended_accuracy": a}} for s, a in accuracies]
    assert best_epoch(history) == 2
    history[3]["validation"]["adversarial_accuracy"] = 0.1
    assert best_epoch(history) == 3


def test_best_epoch_is_kept_when_others_go_and_can_be_gone_back_to(tmp_path):
    checkpoints, trainer = Checkpoints(tmp_path, _SETTINGS), _trainer()
    history = []
    for accuracy in (0.2, 0.8, 0.4, 0.6, 0.5):
        trainer.defended.classifier.layers[-1].bias.assign([accuracy, 0.0, 0.0])
        entry = {"stage": "alternation", "validation": {"defended_accuracy": accuracy}}
        history = [*history, entry]
        checkpoints.save(trainer.state, Position(history))
    checkpoints.restore_best(trainer.state)
    assert trainer.defended.classifier.layers[-1].bias.numpy()[0] == np.float32(0.8)


def test_best_epoch_that_is_missing_is_told(tmp_path):
    with pytest.raises(SfmError, match=r"best.npz .*; train again, or set kept_epoch"):
        Checkpoints(tmp_path, _SETTINGS).restore_best(_trainer().state)


def test_process_that_is_no_writer_writes_nothing(tmp_path):
    Checkpoints(tmp_path / "new", _SETTINGS, is_writer=False).save(_trainer().state, _epochs(1))
    assert not (tmp_path / "new").exists()


def test_damaged_newest_falls_back_to_the_one_before(tmp_path):
    states, newest = _save_epochs(tmp_path, 2), tmp_path / "epoch_00002.npz"
    data = newest.read_bytes()
    flipped, foreign = bytearray(data), io.BytesIO()
    flipped[data.index(np.float32(1.0).tobytes())] ^= 1  # The bias of the second epoch.
    np.savez(foreign, weights=np.zeros(3))
    for damaged in (data[:-200], flipped, b"", b"not an archive", foreign.getvalue()):
        newest.write_bytes(damaged)
        _assert_restores(tmp_path, states[0], 1)


def test_without_an_intact_checkpoint_nothing_changes_and_the_log_says_why(tmp_path, caplog):
    trainer = _trainer()
    before = _state(trainer)
    (tmp_path / "epoch_00001.npz").write_bytes(b"")
    standard_logging.getLogger("absl").propagate = True
    with caplog.at_level("WARNING", logger="absl"):
        for folder in (tmp_path, tmp_path / "absent"):
            assert Checkpoints(folder, _SETTINGS).restore(trainer.state) == Position()
    assert "epoch_00001.npz is damaged" in caplog.text
    for pair in zip(_state(trainer), before, strict=True):
        np.testing.assert_array_equal(*pair)


def test_write_that_fails_leaves_the_earlier_ones_and_no_debris(tmp_path, monkeypatch):
    states = _save_epochs(tmp_path, 2)
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Checkpoints(tmp_path, _SETTINGS).save(_trainer().state, _epochs(3))
    assert sorted(tmp_path.iterdir()) == before
    _assert_restores(tmp_path, states[-1], 2)


def test_checkpoints_of_other_settings_and_models_are_refused(tmp_path):
    _save_epochs(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, {**_SETTINGS, "epochs": 9})
    with pytest.raises(SfmError, match=r"other settings \(epochs\); resume with those"):
        checkpoints.restore(_trainer().state)
    with pytest.raises(SfmError, match="holds other models"):
        Checkpoints(tmp_path, _SETTINGS).restore(_trainer(units=4).state)
