import pytest

from sfm_tf.errors import SfmError
from sfm_tf.tuning.roles import Role, role_of

PLACE = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


@pytest.mark.parametrize(
    ("environment", "role"),
    [
        ({}, Role.ALONE),
        ({"KERASTUNER_TUNER_ID": "chief"}, Role.ALONE),
        ({**PLACE, "KERASTUNER_TUNER_ID": "chief"}, Role.CHIEF),
        ({**PLACE, "KERASTUNER_TUNER_ID": "worker3"}, Role.WORKER),
    ],
)
def test_the_environment_says_which_part_a_process_has(environment, role):
    assert role_of(environment) is role


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KERASTUNER_TUNER_ID": ""}, "KERASTUNER_ORACLE_IP is set but KERASTUNER_TUNER_ID not"),
        ({"KERASTUNER_ORACLE_PORT": ""}, "but KERASTUNER_ORACLE_PORT not; expected all three"),
        ({"KERASTUNER_ORACLE_PORT": "http"}, "Invalid KERASTUNER_ORACLE_PORT 'http'; expected a"),
        ({"KERASTUNER_ORACLE_PORT": "65536"}, "expected a number from 1 to 65535"),
    ],
)
def test_half_an_address_is_refused(changes, message):
    with pytest.raises(SfmError, match=message):
        role_of({**PLACE, "KERASTUNER_TUNER_ID": "chief", **changes})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
