import collections
import dataclasses

import keras
import pytest

from sfm_tf import experiments
from sfm_tf.datasets.ingestion import ingest
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.training import model_building
from sfm_tf.training.losses import measure_ratios
from sfm_tf.training.training import TrainingSession
from sfm_tf.training.training_loop import defence_schedule


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_presets_are_named_after_themselves(name):
    assert experiments.preset(name).name == name


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(SfmError, match="Unknown experiment 'mnist'; expected one of digits, cifar"):
        experiments.preset("mnist")


def test_no_two_sections_share_a_field_so_that_each_has_its_flag():
    names = collections.Counter(
        field.name
        for section in experiments.SECTIONS.values()
        for field in dataclasses.fields(section)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_field_carries_its_help():
    for section in experiments.SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata["help"].endswith("."), field.name


def test_override_reaches_every_section():
    changed = experiments.override(
        experiments.preset("digits"), {"shards": 2, "epochs": 3, "epsilons": (4.0,), "seed": 9}
    )
    assert changed.data.shards == 2
    assert changed.training.epochs == 3
    assert changed.evaluation.epsilons == (4.0,)
    assert changed.seed == 9
    assert changed.model == experiments.preset("digits").model


def test_override_refuses_an_unknown_field_and_lists_the_known():
    with pytest.raises(SfmError, match="Unknown setting 'epoch'; expected one of .*epochs"):
        experiments.override(experiments.preset("digits"), {"epoch": 3})


def test_override_checks_the_new_value():
    with pytest.raises(SfmError, match="Invalid epochs -1; expected at least 1"):
        experiments.override(experiments.preset("digits"), {"epochs": -1})


def test_house_numbers_are_not_mirrored():
    assert experiments.preset("svhn").training.augmentation == "crop"


def test_paper_recipe_is_what_flags_that_are_given_change():
    digits = experiments.preset("digits")
    paper = experiments.override(digits, {"recipe": "paper", "semantic_weight": 2.0}).training
    assert (paper.sparsity_weight, paper.semantic_weight) == (0.0025, 2.0)
    assert (paper.loss_reduction, paper.masker_optimizer) == ("batch", "sgd")
    assert paper.epochs == digits.training.epochs


def test_paper_weighs_larger_images_otherwise():
    large = experiments.override(experiments.preset("tiny_imagenet"), {"recipe": "paper"}).training
    weights = (large.sparsity_weight, large.semantic_weight, large.reconstruction_weight)
    assert weights == (0.1, 0.01, 100.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """600 of the digits to train on, some of them for validation."""
    folder = tmp_path_factory.mktemp("records")
    config = DataConfig(shards=1, max_train_examples=600, max_test_examples=1)
    ingest(config, 0, folder, lambda *_: None)
    return folder


def _small_classifier(name, shape, classes, width, mean, variance, seed):
    """Two convolutions: a residual network takes half a minute to trace."""
    inputs = keras.Input(shape)
    start = keras.initializers.HeNormal(seed=seed)
    features = keras.layers.Conv2D(16, 3, kernel_initializer=start)(inputs)
    features = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(features))
    features = keras.layers.Conv2D(32, 3, strides=2, kernel_initializer=start)(features)
    features = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(features))
    dense = keras.layers.Dense(classes, kernel_initializer=start)
    return keras.Model(inputs, dense(keras.layers.Flatten()(features)))


@pytest.fixture
def validation(records, tmp_path, monkeypatch):
    """Trains the digits preset for a short while; returns what its validation measured."""
    monkeypatch.setattr(model_building, "build_classifier", _small_classifier)

    def train(seed=0, **changes):
        short = {"masker_width": 4, "pretraining_epochs": 5, "epochs": 10, **changes}
        experiment = experiments.override(experiments.preset("digits"), short)
        config = experiment.training
        session = TrainingSession.open(
            records, experiment.model, config, seed, tmp_path, lambda *_: None
        )
        schedule = defence_schedule(
            config, measure_ratios(config, session.training.images).first_share
        )
        _, history = session.train("defence", session.factory.defended, schedule, seed)
        assert history[-1]["validation"]["bare_accuracy"] > 0.8
        return history[-1]["validation"]

    return train


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_preset_learns_a_mask_that_is_neither_ones_nor_zeros(validation, seed):
    measured = validation(seed)
    assert 0.1 < measured["mask_mean"] < 0.9
    assert measured["mask_spread"] > 0.05
    assert measured["defended_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["svhn", "tiny_imagenet", "image_folder"])
def test_presets_weigh_the_losses_alike_whatever_the_size_of_the_images(name):
    def ratios(training, side):
        # With pixels of the same brightness both norms grow with the side.
        return [
            training.sparsity_weight * side / training.reconstruction_weight,
            training.semantic_weight / side / training.reconstruction_weight,
        ]

    side = 32 if name == "svhn" else 64
    expected = ratios(experiments.preset("cifar10").training, 32)
    assert ratios(experiments.preset(name).training, side) == pytest.approx(expected)


# The critical weight is 1 / 8, see `losses.sparsity_ratio`; a digit's brightness adds up to 20.
@pytest.mark.parametrize(("weight", "least", "most"), [(0.06, 18.0, 22.0), (0.5, 0.0, 2.0)])
def test_without_semantics_the_critical_weight_parts_all_from_nothing(
    validation, weight, least, most
):
    measured = validation(
        sparsity_weight=weight, semantic_weight=0.0, masker_learning_rate=0.05, masker_depth=1
    )
    assert least < measured["sparsity"] < most
