import dataclasses

import pytest

from sfm_tf import config
from sfm_tf.errors import SfmError


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            config.DataConfig,
            {"dataset": "mnist"},
            "Unknown dataset 'mnist'; expected one of digits",
        ),
        (config.DataConfig, {"shards": 0}, "Invalid shards 0; expected at least 1"),
        (config.DataConfig, {"test_fraction": 0.9}, "Invalid test_fraction 0.9; expected at most"),
        (config.EvaluationConfig, {"attacks": ("pdg",)}, "Unknown attacks 'pdg'; expected one of"),
        (config.EvaluationConfig, {"epsilons": (8.0, 300.0)}, "Invalid epsilons 300.0"),
        (config.EvaluationConfig, {"step_size": float("nan")}, "Invalid step_size nan"),
        (config.EvaluationConfig, {"epsilons": (8.0, 8.0)}, "epsilons 8.0, 8.0; expected each"),
        (config.ExportConfig, {"model_name": "a/b"}, "Invalid model_name 'a/b'; expected letters"),
        (config.ExportConfig, {"model_name": ".."}, "Invalid model_name"),
    ],
)
def test_refuses_values_outside_the_declared_limits(section, values, message):
    with pytest.raises(SfmError, match=message):
        section(**values)


def test_limits_are_inclusive():
    assert config.DataConfig(validation_fraction=0.5).validation_fraction == 0.5
    assert config.EvaluationConfig(epsilons=(255.0,)).epsilons == (255.0,)


def test_settings_are_immutable_and_refuse_unknown_fields():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.DataConfig().dataset = "cifar10"
    with pytest.raises(TypeError, match="unexpected keyword"):
        config.DataConfig(datset="cifar10")


def test_the_paper_is_the_default_attack_setting():
    evaluation = config.EvaluationConfig()
    assert (evaluation.iterations, evaluation.step_size) == (30, 1.0)
    assert evaluation.epsilons == (8.0, 16.0)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
