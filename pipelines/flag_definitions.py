"""Command-line flags made from the declared settings, and settings made from the flags."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from sfm_tf import experiments
from sfm_tf.config import Experiment
from sfm_tf.errors import SfmError

_MODULE = "pipelines (all stages)"
_DEFAULT_EXPERIMENT = "digits"

_EXPERIMENT = flags.DEFINE_enum(
    "experiment",
    None,
    list(experiments.EXPERIMENTS),
    "Preset that settings start from; by default the one that owns --workdir, else "
    f"{_DEFAULT_EXPERIMENT}.",
    module_name=_MODULE,
)
_SEED = flags.DEFINE_integer(
    "seed", None, "Seed of every random choice; by default the preset's.", module_name=_MODULE
)
_DEFINERS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def define_flags(sections: Sequence[str], module_name: str) -> None:
    """Defines one flag for each field of the named sections of an experiment.

    A flag's default is None, which stands for the preset's value.

    Args:
        sections: Keys of `experiments.SECTIONS`.
        module_name: Heading that `--help` lists them under.
    """
    for section in sections:
        for field in dataclasses.fields(experiments.SECTIONS[section]):
            _define(field, module_name)


def define_flag(section: str, name: str, module_name: str) -> None:
    """Defines the flag of one field of a section that is otherwise another stage's."""
    (field,) = (f for f in dataclasses.fields(experiments.SECTIONS[section]) if f.name == name)
    _define(field, module_name)


def _define(field: dataclasses.Field, module_name: str) -> None:
    choices = field.metadata["choices"]
    listed = f" One of: {', '.join(choices)}." if choices else ""
    _DEFINERS[type(field.default)](
        field.name,
        None,
        f"{field.metadata['help']}{listed} By default the preset's.",
        module_name=module_name,
    )


def experiment_from_flags(owner: str | None) -> Experiment:
    """Returns the preset asked for, with every field that a flag gives replaced.

    Args:
        owner: Name of the experiment that owns the working directory; None for a new one.

    Raises:
        SfmError: If a value is not of the field's kind or outside its limits.
    """
    experiment = experiments.preset(_EXPERIMENT.value or owner or _DEFAULT_EXPERIMENT)
    values: dict[str, Any] = {}
    for section in experiments.SECTIONS:
        for field in dataclasses.fields(experiments.SECTIONS[section]):
            if field.name in flags.FLAGS and flags.FLAGS[field.name].value is not None:
                values[field.name] = _typed(field, flags.FLAGS[field.name].value)
    if _SEED.value is not None:
        values["seed"] = _SEED.value
    return experiments.override(experiment, values)


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """Returns a flag's value as the field's type: absl gives lists of strings."""
    if not isinstance(field.default, tuple):
        return value
    if not value:
        raise SfmError(f"Empty --{field.name}; give at least one value.")
    kind = type(field.default[0])
    try:
        return tuple(kind(item) for item in value)
    except ValueError as error:
        received = ",".join(value)
        raise SfmError(f"Invalid --{field.name}={received}; expected {kind.__name__}s.") from error
