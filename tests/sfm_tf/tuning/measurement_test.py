import dataclasses

import keras
import numpy as np
import pytest

from sfm_tf.attacks.catalogue import build_attack
from sfm_tf.attacks.threat_models import ThreatModel, attacked_model
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.tuning.measurement import Measurement, measurement_settings

EVALUATION = EvaluationConfig(
    epsilons=(64.0, 48.0), iterations=2, attacks=("cw", "fgsm"), norm="2", min_clean_accuracy=0.9
)
COUNT = 40


def _linear(seed):
    """A linear classifier that an even image tells nothing."""
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    )
    kernel = np.random.default_rng(seed).normal(size=(16, 3))
    model.set_weights([kernel - kernel.mean(axis=0)])
    return model


@pytest.fixture(name="measured", scope="module")
def _measured(tmp_path_factory):
    """A linear model behind a mask, a measurement of it, and a folder."""
    initializer = keras.initializers.RandomNormal(stddev=0.3, seed=2)
    convolution = keras.layers.Conv2D(
        1, 3, padding="same", activation="sigmoid", kernel_initializer=initializer
    )
    masker = keras.Sequential([keras.Input((4, 4, 1)), convolution])
    defended = DefendedModel(_linear(0), masker, parse_preprocessor("bit_depth_4", "identity"))
    images = np.random.default_rng(0).random((COUNT, 4, 4, 1)).astype(np.float32)
    folder = tmp_path_factory.mktemp("measured")
    source = _linear(1)
    # Alike enough for its adversarial images to fool the other, too.
    pairs = zip(defended.classifier.get_weights(), source.get_weights(), strict=True)
    source.set_weights([target + 0.5 * own for target, own in pairs])
    measurement = Measurement(
        source=source,
        images=images,
        labels=np.argmax(defended.predict(images, verbose=0), axis=1),
        config=measurement_settings(EVALUATION, gray_box=True),
        seed=3,
        folder=folder / "black",
        progress=lambda phrase, done, total: None,
    )
    return measurement, defended, folder


def test_the_paper_chooses_by_pgd_at_its_smallest_radius_in_the_linf_norm():
    config = measurement_settings(EVALUATION, gray_box=True)
    assert (config.attacks, config.epsilons, config.norm) == (("pgd",), (48.0,), "inf")
    assert (config.iterations, config.threat_models) == (2, ("black_box", "gray_box"))
    # Changes that it does not read make no other measurement.
    other = dataclasses.replace(EVALUATION, epsilons=(48.0,), attacks=("fgsm",), cw_searches=9)
    assert measurement_settings(other, gray_box=True) == config


def test_boxes_are_attacked_through_their_models_and_scored_on_the_defended_one(measured):
    measurement, defended, root = measured
    scores = measurement.scores(defended, root / "gray")
    assert (scores["examples"], scores["epsilon"]) == (COUNT, 48.0)
    samples = check_samples(measurement.images, measurement.labels, defended.classifier)

    def accuracy(images):
        return np.mean(np.argmax(defended.predict(images, verbose=0), axis=1) == samples.labels)

    assert scores["clean"] == accuracy(samples.images) == 1.0
    assert scores["gray_box"] < scores["black_box"] < 1.0
    for threat_model in (ThreatModel.BLACK_BOX, ThreatModel.GRAY_BOX):
        target = attacked_model(threat_model, defended, measurement.source)
        estimator = samples.wrap(target, 128)
        attack = build_attack("pgd", estimator, 48.0 / 255.0, measurement.config, 3)
        attack.set_params(step_size=24.0 / 255.0)  # Two steps have to cross the ball.
        images = attack.generate(samples.images, samples.labels)
        assert scores[threat_model.value] == pytest.approx(accuracy(images)), threat_model


def test_the_gray_box_is_left_out_where_it_is_not_asked_for(measured):
    measurement, defended, root = measured
    config = measurement_settings(EVALUATION, gray_box=False)
    without = dataclasses.replace(measurement, config=config)
    assert without.scores(defended, root / "none")["gray_box"] is None
    assert not (root / "none").exists()


def test_the_images_of_the_black_box_are_made_once(measured):
    measurement, defended, root = measured
    folder = root / "once"
    once = dataclasses.replace(
        measurement, folder=folder, config=measurement_settings(EVALUATION, gray_box=False)
    )
    scores = once.source_scores()
    assert set(scores) == {"clean", "attacked"}
    (stored,) = folder.glob("pgd-*.tfrecord")
    modified = stored.stat().st_mtime_ns
    once.scores(defended, root / "unused")
    assert [path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")] == [modified]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
