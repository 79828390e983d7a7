import shlex
from typing import Any

import pytest

from pipelines.reproduction import reproduction_command
from sfm_tf import experiments
from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest


def manifests(values: dict[str, Any]) -> list[Manifest]:
    """Manifests of the stages of the digits, some settings replaced."""
    experiment = experiments.override(experiments.preset("digits"), values)
    stages = {"ingest": ("data",), "train": ("model", "training"), "evaluate": ("evaluation",)}
    return [
        Manifest(
            stage=stage,
            fingerprint=stage,
            config={name: config_values(getattr(experiment, name)) for name in sections},
            seed=experiment.seed,
            inputs={},
            content="",
            code_version="",
            package_versions={},
            started="",
            wall_seconds=0.0,
        )
        for stage, sections in stages.items()
    ]


def test_a_preset_needs_no_further_flags():
    command = reproduction_command("digits", manifests({}))
    assert command == "python -m pipelines.run --experiment=digits --seed=0"


def test_every_changed_setting_is_a_flag():
    changed = {
        "seed": 5,
        "shards": 2,
        "preprocessor": "none",
        "epochs": 3,
        "epsilons": (4.0, 8.5),
        "attacks": ("fgsm",),
        "robust_accuracy_only": True,
    }
    words = shlex.split(reproduction_command("digits", manifests(changed)))
    assert words[:5] == ["python", "-m", "pipelines.run", "--experiment=digits", "--seed=5"]
    assert sorted(words[5:]) == [
        "--attacks=fgsm",
        "--epochs=3",
        "--epsilons=4,8.5",
        "--preprocessor=none",
        "--robust_accuracy_only=true",
        "--shards=2",
    ]


def test_folders_of_this_machine_are_not_told():
    command = reproduction_command("digits", manifests({"data_dir": "/home/ann/data"}))
    assert "ann" not in command
    assert command.endswith(" --data_dir=DATA_DIR")


def test_a_setting_that_later_versions_do_not_have_is_left_out():
    older = manifests({})
    older[-1].config["evaluation"]["gone"] = 3
    assert "gone" not in reproduction_command("digits", older)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
