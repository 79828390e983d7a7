import re

import pytest

from sfm_tf import choices

TABLES = ("ANOMALY_KINDS", "ATTACKS", "AUDIT_LEVELS", "DEFENCES", "THREAT_MODELS")


@pytest.mark.parametrize("table", TABLES)
def test_each_name_is_there_once_and_can_stand_in_a_list_of_a_flag(table):
    names = getattr(choices, table)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_the_least_level_of_the_audit_comes_first():
    assert choices.AUDIT_LEVELS[0] == "not_credible"
    assert choices.AUDIT_LEVELS[-1] == "credible"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
