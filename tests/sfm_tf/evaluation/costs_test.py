import time
from types import SimpleNamespace

import numpy as np
import pytest

from sfm_tf.evaluation.costs import measure_costs

IMAGES = np.zeros((50, 4, 4, 1), np.float32)


def _model(seconds, seen):
    def predictions(images):
        seen.append(len(images))
        time.sleep(seconds)

    return SimpleNamespace(predictions=predictions)


def test_costs_are_scaled_to_a_thousand_images_and_to_the_bare_classifier():
    seen = []
    models = {"undefended": _model(0.01, seen), "slow": _model(0.05, seen)}
    bare, slow = measure_costs(models, IMAGES, batch_size=20)
    assert (bare["defence"], slow["defence"]) == ("undefended", "slow")
    assert set(seen) == {20}
    assert bare["seconds_per_1000_images"] == pytest.approx(0.5, rel=0.5)
    assert bare["relative_to_undefended"] == 1.0
    ratio = slow["seconds_per_1000_images"] / bare["seconds_per_1000_images"]
    assert slow["relative_to_undefended"] == pytest.approx(ratio)
    assert ratio > 2


def test_without_the_bare_classifier_nothing_is_relative_to_it():
    (own,) = measure_costs({"model": _model(0.0, [])}, IMAGES, batch_size=100)
    assert own["relative_to_undefended"] is None
    assert own["images"] == 50


def test_a_long_pass_is_measured_once(monkeypatch):
    monkeypatch.setattr("sfm_tf.evaluation.costs._ENOUGH_SECONDS", 0.01)
    seen = []
    measure_costs({"slow": _model(0.02, seen)}, IMAGES, batch_size=10)
    assert seen == [10]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
