import pytest
from absl import flags
from absl.testing import flagsaver

from pipelines import evaluate, flag_definitions, train
from sfm_tf.errors import SfmError


def test_every_field_has_a_flag_that_says_what_it_takes():
    text = flags.FLAGS.module_help(train.MODULE)
    assert "--pretraining_epochs" in text
    assert "One of: epoch, step." in text
    assert "(an integer)" in text
    assert "--epsilons" in flags.FLAGS.module_help(evaluate.MODULE)


def test_without_flags_the_preset_is_unchanged():
    experiment = flag_definitions.experiment_from_flags("cifar10")
    assert experiment.name == "cifar10"
    assert experiment.training.epochs == 50


def test_a_flag_overrides_its_field():
    with flagsaver.as_parsed(epochs="3", epsilons="4,8", attacks="pgd", seed="7"):
        experiment = flag_definitions.experiment_from_flags(None)
    assert experiment.training.epochs == 3
    assert experiment.evaluation.epsilons == (4.0, 8.0)
    assert experiment.evaluation.attacks == ("pgd",)
    assert experiment.seed == 7


def test_the_experiment_flag_wins_over_the_owner():
    with flagsaver.as_parsed(experiment="svhn"):
        assert flag_definitions.experiment_from_flags("digits").name == "svhn"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilons": "8,x"}, "Invalid --epsilons=8,x; expected floats"),
        ({"epsilons": ""}, "Empty --epsilons; give at least one value"),
        ({"attacks": "pdg"}, "Unknown attacks 'pdg'; expected one of noise, fgsm"),
        ({"alternation": "sometimes"}, "Unknown alternation 'sometimes'; expected one of epoch"),
    ],
)
def test_refuses_values_that_no_setting_can_take(values, message):
    with flagsaver.as_parsed(**values), pytest.raises(SfmError, match=message):
        flag_definitions.experiment_from_flags(None)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    raise SystemExit(pytest.main([__file__]))
