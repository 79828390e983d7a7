import dataclasses
import math

import pytest

from sfm_tf.errors import SfmError
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
        ({"racks": (3, 3)}, "Invalid racks 3, 3; expected each only once"),
    ],
)
def test_a_value_outside_its_limits_is_refused(values, message):
    with pytest.raises(SfmError, match=message):
        Oven(**values)


def test_limits_are_inclusive():
    assert Oven(heat=30.0, racks=(1,)).heat == 30.0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
