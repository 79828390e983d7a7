import dataclasses

import pytest

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.report.provenance_sections import (
    commands_section,
    data_section,
    provenance_section,
)
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.row_commands import RowCommand
from sfm_tf.report.section import Section

FIGURES = {"examples": 10, "correct": 5, "accuracy": 0.5}
SPLIT = {
    "count": 10,
    "exact_duplicates": 0,
    "mean": [0.25, 0.5, 0.75],
    "std": [0.125, 0.125, 0.0],
    "class_counts": {"cat": 4, "dog": 6},
}
INPUTS = ReportInputs(
    experiment="one",
    dataset="cifar10",
    statistics={"train": SPLIT, "test": SPLIT},
    class_counts={"cat": 4, "dog": 6},
    evaluation=EvaluationConfig(),
    metrics={"clean": [FIGURES], "under_attack": [], "worst_case": []},
    blessing=Blessing(True, ("A reason.",)),
    history={},
    manifests=(
        Manifest(
            stage="train",
            fingerprint="0123456789abcdef" * 4,
            config={"training": {"epochs": 2, "augmentation": "none"}},
            seed=3,
            inputs={},
            content="0a",
            code_version="0" * 64,
            package_versions={"keras": "3.15.1"},
            started="2025-01-02T03:04:05+00:00",
            wall_seconds=1234.56,
        ),
    ),
    gallery=None,
)


def cells(section: Section, title: str) -> dict[str, list[str]]:
    (table,) = (table for table in section.tables if table.title == title)
    return {row.label: [str(cell) for cell in row.cells] for row in table.rows}


def test_data_and_provenance_are_those_of_the_inputs():
    assert cells(data_section(INPUTS), "Test images of each class") == {
        "cat": ["4", "4"],
        "dog": ["6", "6"],
    }
    assert cells(data_section(INPUTS), "Images of cifar10")["test"] == [
        "10",
        "0",
        "0.250, 0.500, 0.750",
        "0.125, 0.125, 0.000",
    ]
    assert cells(provenance_section(INPUTS), "Stages") == {
        "train": ["0123456789abcdef", "3", "2025-01-02T03:04:05+00:00", "1,234.6"]
    }
    assert cells(provenance_section(INPUTS), "Packages") == {"keras": ["3.15.1"]}
    assert cells(provenance_section(INPUTS), "Settings") == {
        "train: training.epochs": ["2"],
        "train: training.augmentation": ['"none"'],
    }


def test_every_row_has_its_command_and_what_it_depends_on_is_told():
    commands = (
        RowCommand("all", "worst_case", None, "python -m pipelines.evaluate"),
        RowCommand("white_box", "worst_case", 8.0, "python -m pipelines.evaluate --epsilons=8"),
        RowCommand("black_box", "pgd", 0.5, "python -m pipelines.evaluate --attacks=pgd"),
    )
    section = commands_section(dataclasses.replace(INPUTS, commands=commands))
    assert cells(section, "Commands") == {
        "all threat models, all radii": ["python -m pipelines.evaluate"],
        "white box, 8/255": ["python -m pipelines.evaluate --epsilons=8"],
        "black box, PGD 0.5/255": ["python -m pipelines.evaluate --attacks=pgd"],
    }
    assert len(section.paragraphs) == 1
    evaluation = EvaluationConfig(robust_accuracy_only=True)
    section = commands_section(
        dataclasses.replace(INPUTS, commands=commands, evaluation=evaluation)
    )
    assert section.paragraphs[1].endswith("so a command runs those too.")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
