import dataclasses
import shlex
from typing import Any

import numpy as np
import pytest
from absl import flags

from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.blessing import Blessing
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.experiments import Experiment
from sfm_tf.report.report_inputs import Gallery, ReportInputs, RowCommand, row_commands

PRESET = Experiment(
    name="digits", evaluation=EvaluationConfig(num_examples=0, epsilons=(16.0, 32.0))
)
EVALUATION = dataclasses.replace(
    PRESET.evaluation,
    num_examples=356,
    attacks=("fgsm", "pgd", "cw"),
    threat_models=("black_box", "white_box", "adaptive"),
    epsilons=(8.0, 0.1),
    defences=("undefended", "jpeg+median_2"),
    cw_learning_rate=1e-6,
    restarts=3,
)
COMPARED = ComparedConfig(jpeg="jpeg_50")
DEFINERS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def entry(threat_model: str, epsilon: float | None, **more: Any) -> dict[str, Any]:
    return {"threat_model": threat_model, "epsilon": epsilon, **more}


METRICS = {
    "under_attack": [
        entry(name, epsilon, attack=attack, defence=defence)
        for defence in ("undefended", "sfm")
        for name, attack in (
            ("white_box", "pgd"),
            ("black_box", "fgsm"),
            ("adaptive", "adaptive_mask_stage"),
        )
        for epsilon in (8.0, 0.1)
    ],
    "minimum_norm": [{"threat_model": "white_box", "attack": "cw", "defence": "sfm"}],
    "worst_case": [
        entry("white_box", 8.0, defence="sfm"),
        entry("white_box", None, defence="sfm"),
        entry("all", None, defence="sfm"),
    ],
}


def commands(
    evaluation: EvaluationConfig = EVALUATION, compared: ComparedConfig = COMPARED, seed: int = 7
) -> dict[tuple, RowCommand]:
    config = {"evaluation": config_values(evaluation), "compared": config_values(compared)}
    manifest = Manifest(
        stage="evaluate",
        fingerprint="0" * 64,
        config=config,
        seed=seed,
        inputs={},
        content="00",
        code_version="0" * 64,
        package_versions={},
        started="",
        wall_seconds=1.0,
    )
    return {tuple(each.condition): each for each in row_commands(PRESET, manifest, METRICS)}


def parsed(command: str) -> dict[str, Any]:
    """Returns what absl makes of a command's flags, by name; only those that are given."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "pipelines.evaluate"]
    values = flags.FlagValues()
    for name in ("workdir", "experiment"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_integer("seed", None, "", flag_values=values)
    for section in (EvaluationConfig, ComparedConfig):
        for field in dataclasses.fields(section):
            DEFINERS[type(field.default)](field.name, None, "", flag_values=values)
    assert values(words[2:]) == ["pipelines.evaluate"]
    return {name: values[name].value for name in values if values[name].value is not None}


def settings(command: str, section: Any) -> Any:
    """Returns a preset's section with what the flags of a command change."""
    given = {
        name: tuple(map(type(getattr(section, name)[0]), value))
        if isinstance(value, list)
        else value
        for name, value in parsed(command).items()
        if hasattr(section, name)
    }
    return dataclasses.replace(section, **given)


@pytest.mark.parametrize(
    ("row", "narrowed"),
    [
        (
            ("white_box", "pgd", 8.0),
            {"threat_models": ("white_box",), "attacks": ("pgd",), "epsilons": (8.0,)},
        ),
        (
            ("black_box", "fgsm", 0.1),
            {"threat_models": ("black_box",), "attacks": ("fgsm",), "epsilons": (0.1,)},
        ),
        (
            ("adaptive", "adaptive_mask_stage", 8.0),
            {"threat_models": ("adaptive",), "epsilons": (8.0,)},
        ),
        (("white_box", "cw", None), {"threat_models": ("white_box",), "attacks": ("cw",)}),
        (
            ("white_box", "worst_case", 8.0),
            {"threat_models": ("white_box",), "epsilons": (8.0,)},
        ),
        (("white_box", "worst_case", None), {"threat_models": ("white_box",)}),
        (("all", "worst_case", None), {}),
    ],
)
def test_a_command_has_the_settings_of_the_evaluation_but_for_its_row(row, narrowed):
    command = commands()[row].command
    expected = dataclasses.replace(EVALUATION, **narrowed)
    assert settings(command, PRESET.evaluation) == expected
    assert settings(command, PRESET.compared) == COMPARED
    given = parsed(command)
    assert (given["workdir"], given["experiment"], given["seed"]) == ("WORKDIR", "digits", 7)


def test_every_row_has_one_command_for_all_defences_and_all_attackers_come_first():
    rows = list(commands())
    assert rows[0] == ("all", "worst_case", None)
    assert [threat_model for threat_model, _, _ in rows] == [
        "all",
        *["black_box"] * 2,
        *["white_box"] * 5,
        *["adaptive"] * 2,
    ]


def test_what_is_the_presets_is_not_repeated():
    metrics_row = ("all", "worst_case", None)
    evaluation = dataclasses.replace(
        PRESET.evaluation, threat_models=("black_box", "white_box", "adaptive")
    )
    command = commands(evaluation, ComparedConfig(), seed=0)[metrics_row].command
    assert command == (
        "python -m pipelines.evaluate --workdir=WORKDIR --experiment=digits --seed=0 "
        "--threat_models=black_box,white_box,adaptive"
    )


def test_a_row_that_depends_on_those_before_it_has_them_run_too():
    evaluation = dataclasses.replace(
        EVALUATION, robust_accuracy_only=True, attacks=("apgd_ce", "fgsm", "pgd")
    )
    command = commands(evaluation)[("white_box", "pgd", 8.0)].command
    # The cheap come first whatever their order among the settings; APGD comes after PGD.
    expected = dataclasses.replace(evaluation, attacks=("fgsm", "pgd"), epsilons=(8.0,))
    assert settings(command, PRESET.evaluation) == expected


def test_words_are_quoted_for_a_shell_and_folders_of_this_machine_are_not_told():
    evaluation = dataclasses.replace(EVALUATION, model="/home/ann/my model.keras")
    compared = dataclasses.replace(COMPARED, jpeg="jpeg_5; echo `id` 'x'")
    command = commands(evaluation, compared)[("all", "worst_case", None)].command
    assert "ann" not in command
    given = parsed(command)
    assert given["model"] == "MODEL"
    assert given["jpeg"] == "jpeg_5; echo `id` 'x'"
    assert "'--jpeg=jpeg_5; echo `id` '" in command


def inputs(examples: int, class_counts: dict[str, int]) -> ReportInputs:
    images = np.zeros((1, 2, 2, 1), np.float32)
    return ReportInputs(
        experiment="digits",
        dataset="digits",
        statistics={},
        class_counts=class_counts,
        evaluation=EvaluationConfig(),
        metrics={"clean": [{"examples": examples}], "under_attack": [], "worst_case": []},
        blessing=Blessing(False, ()),
        history={},
        manifests=(),
        gallery=Gallery(images, images, images, images),
    )


def test_figures_of_the_counted_images_are_taken():
    assert inputs(5, {"a": 2, "b": 3}).perturbations == ()


def test_figures_of_other_images_are_refused():
    with pytest.raises(SfmError, match=r"of \[6\] images but the classes count 5"):
        inputs(6, {"a": 2, "b": 3})
