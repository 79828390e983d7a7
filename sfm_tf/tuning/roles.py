"""Which part a process has in a search that several processes share."""

import enum
from collections.abc import Mapping

from sfm_tf.errors import SfmError

TUNER_ID = "KERASTUNER_TUNER_ID"
ORACLE_IP = "KERASTUNER_ORACLE_IP"
ORACLE_PORT = "KERASTUNER_ORACLE_PORT"


class Role(enum.Enum):
    """What KerasTuner makes of a process; it tells from the environment.

    `ALONE` asks itself for trials and does them. `CHIEF` hands them out to the workers, does none,
    and ends when all are done. `WORKER` does what the chief hands out.
    """

    ALONE = "alone"
    CHIEF = "chief"
    WORKER = "worker"


def role_of(environment: Mapping[str, str]) -> Role:
    """Returns the role that the environment's variables give a process.

    Args:
        environment: `os.environ`, which KerasTuner reads itself.

    Raises:
        SfmError: If only part of the variables is set, or the port is no number.
    """
    if ORACLE_IP not in environment:
        return Role.ALONE
    missing = [name for name in (ORACLE_PORT, TUNER_ID) if not environment.get(name)]
    if missing:
        raise SfmError(
            f"{ORACLE_IP} is set but {' and '.join(missing)} not; expected all three, or none for "
            "a search in this process alone."
        )
    port = environment[ORACLE_PORT]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SfmError(f"Invalid {ORACLE_PORT} {port!r}; expected a number from 1 to 65535.")
    return Role.CHIEF if "chief" in environment[TUNER_ID] else Role.WORKER
