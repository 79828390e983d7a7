import dataclasses
import math
import re

import pytest

from sfm_tf.datasets.settings import ANOMALY_KINDS, DataConfig
from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.settings import AUDIT_LEVELS, EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.serving.settings import ExportConfig
from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    heat: float = setting(180.0, "Degrees.", minimum=30.0, maximum=250.0)
    mode: str = setting("fan", "How it heats.", choices=("fan", "grill"))
    racks: tuple[int, ...] = setting((1, 2), "Racks in use.", minimum=1)


def test_a_declaration_carries_help_and_limits():
    (heat, mode, _) = dataclasses.fields(Oven)
    assert heat.default == 180.0
    assert (heat.metadata["help"], heat.metadata["maximum"]) == ("Degrees.", 250.0)
    assert mode.metadata["choices"] == ("fan", "grill")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 29.9}, "Invalid heat 29.9; expected at least 30.0"),
        ({"heat": 251.0}, "Invalid heat 251.0; expected at most 250.0"),
        ({"heat": math.nan}, "Invalid heat nan; expected a finite number"),
        ({"mode": "steam"}, "Unknown mode 'steam'; expected one of fan, grill"),
        ({"racks": (1, 0)}, "Invalid racks 0; expected at least 1"),
        ({"racks": (3, 3)}, "Invalid racks 3, 3; expected each value only once"),
    ],
)
def test_a_value_outside_its_limits_is_refused(values, message):
    with pytest.raises(SfmError, match=message):
        Oven(**values)


def test_limits_are_inclusive():
    assert Oven(heat=30.0, racks=(1,)).heat == 30.0


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            DataConfig,
            {"dataset": "mnist"},
            "Unknown dataset 'mnist'; expected one of digits",
        ),
        (DataConfig, {"shards": 0}, "Invalid shards 0; expected at least 1"),
        (DataConfig, {"test_fraction": 0.9}, "Invalid test_fraction 0.9; expected at most"),
        (EvaluationConfig, {"attacks": ("pdg",)}, "Unknown attacks 'pdg'; expected one of"),
        (EvaluationConfig, {"epsilons": (8.0, 300.0)}, "Invalid epsilons 300.0"),
        (EvaluationConfig, {"step_size": float("nan")}, "Invalid step_size nan"),
        (EvaluationConfig, {"epsilons": (8.0, 8.0)}, "epsilons 8.0, 8.0; expected each"),
        (ExportConfig, {"model_name": "a/b"}, "Invalid model_name 'a/b'; expected letters"),
        (ExportConfig, {"model_name": ".."}, "Invalid model_name"),
    ],
)
def test_refuses_values_outside_the_declared_limits(section, values, message):
    with pytest.raises(SfmError, match=message):
        section(**values)


def test_limits_of_the_stages_are_inclusive():
    assert DataConfig(validation_fraction=0.5).validation_fraction == 0.5
    assert EvaluationConfig(epsilons=(255.0,)).epsilons == (255.0,)


def test_settings_are_immutable_and_refuse_unknown_fields():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().dataset = "cifar10"
    with pytest.raises(TypeError, match="unexpected keyword"):
        DataConfig(datset="cifar10")


def test_the_paper_is_the_default_attack_setting():
    evaluation = EvaluationConfig()
    assert (evaluation.iterations, evaluation.step_size) == (30, 1.0)
    assert evaluation.epsilons == (8.0, 16.0)


THREAT_MODELS = [threat_model.value for threat_model in ThreatModel]
_NAMES = (ANOMALY_KINDS, ATTACKS, AUDIT_LEVELS, DEFENCES, THREAT_MODELS)


@pytest.mark.parametrize("names", _NAMES)
def test_each_name_is_there_once_and_can_stand_in_a_list_of_a_flag(names):
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_the_least_level_of_the_audit_comes_first():
    assert AUDIT_LEVELS[0] == "not_credible"
    assert AUDIT_LEVELS[-1] == "credible"
