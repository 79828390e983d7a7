"""The command that runs again what artifacts were made with."""

import shlex
from collections.abc import Sequence

from sfm_tf import experiments
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.report.row_commands import changed_flags


def reproduction_command(experiment: str, manifests: Sequence[Manifest]) -> str:
    """Returns the command line that makes artifacts and all they were made from.

    Args:
        experiment: Name of the preset that the settings started from.
        manifests: Manifests of the artifacts, the last stage's at the end; its seed is given.
    """
    preset = experiments.preset(experiment)
    flags = [f"--experiment={experiment}", f"--seed={manifests[-1].seed}"]
    flags += [
        flag
        for manifest in manifests
        for section, values in manifest.config.items()
        for flag in changed_flags(config_values(getattr(preset, section)), values)
    ]
    return shlex.join(["python", "-m", "pipelines.run", *flags])
