"""The command that runs again what artifacts were made with."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from sfm_tf import experiments
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest

_PLACES = ("data_dir", "source", "model", "source_model")
"""Settings that name files of the machine at hand, which go out to nobody."""


def reproduction_command(experiment: str, manifests: Sequence[Manifest]) -> str:
    """Returns the command line that makes artifacts and all they were made from.

    Args:
        experiment: Name of the preset that the settings started from.
        manifests: Manifests of the artifacts, the last stage's at the end; its seed is given.
    """
    flags = [f"--experiment={experiment}", f"--seed={manifests[-1].seed}"]
    flags += [
        flag
        for manifest in manifests
        for section, values in manifest.config.items()
        for flag in _changed(experiment, section, values)
    ]
    return shlex.join(["python", "-m", "pipelines.run", *flags])


def _changed(experiment: str, section: str, values: dict[str, Any]) -> Iterator[str]:
    """Yields a flag for each setting that is not the preset's."""
    preset = config_values(getattr(experiments.preset(experiment), section))
    for name, value in values.items():
        if preset.get(name, value) == value:
            continue
        yield f"--{name}={name.upper() if name in _PLACES else _written(value)}"


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
