import threading

import numpy as np
import pytest

from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig
from sfm_tf.tuning.source_model import source_model, waiting_turn

MODEL = ModelConfig(classifier_width=4, masker_width=4, masker_depth=1)
CONFIG = TrainingConfig(batch_size=42, source_epochs=1, augmentation="none")


def test_the_source_is_trained_once_and_read_back(tmp_path):
    records = testing.make_records(RunDirectory(tmp_path / "run")).folder
    steps = []

    def progress(stage, done, total, metrics):
        steps.append((stage, done, total))

    def trained():
        workplace = Workplace.open(records, MODEL, CONFIG, 0, tmp_path / "source", progress)
        return source_model(workplace), workplace

    first, workplace = trained()
    assert steps == [("source", 1, 2), ("source", 2, 2)]
    assert not (tmp_path / "source" / "checkpoint").exists()
    untrained = workplace.blueprint.source().classifier
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    again, _ = trained()
    assert len(steps) == 2
    np.testing.assert_array_equal(first(images), again(images))
    assert np.abs(np.asarray(untrained(images)) - np.asarray(first(images))).max() > 0.0


def test_a_damaged_source_is_said(tmp_path):
    records = testing.make_records(RunDirectory(tmp_path / "run")).folder
    workplace = Workplace.open(
        records, MODEL, CONFIG, 0, tmp_path / "source", lambda *figures: None
    )
    (tmp_path / "source" / "source.keras").write_bytes(b"half a file")
    with pytest.raises(SfmError, match="source.keras"):
        source_model(workplace)


def test_one_waits_for_the_other(tmp_path):
    order, entered = [], threading.Event()

    def second():
        entered.wait()
        with waiting_turn(tmp_path / "new"):
            order.append("second")

    with waiting_turn(tmp_path / "new"):
        thread = threading.Thread(target=second)
        thread.start()
        entered.set()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
