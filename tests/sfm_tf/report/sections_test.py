import dataclasses

import numpy as np
import pytest

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.report.report_inputs import Gallery, Perturbation, ReportInputs
from sfm_tf.report.sections import Section, build_sections

IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
FIGURES = {
    "examples": 10,
    "correct": 5,
    "accuracy": 0.5,
    "accuracy_low": 0.24,
    "accuracy_high": 0.76,
}
WHITE_BOX = {"defence": "sfm", "threat_model": "white_box", "epsilon": 8.0, **FIGURES}
SPLIT = {
    "count": 10,
    "exact_duplicates": 0,
    "mean": [0.25, 0.5, 0.75],
    "std": [0.125, 0.125, 0.0],
    "class_counts": {"cat": 4, "dog": 6},
}
EPOCHS = (
    {"stage": "pretraining", "training": {"classification_loss": 1.5}, "validation": {"x": 0.5}},
    {
        "stage": "alternation",
        "training": {"classification_loss": 1.0, "mask_loss": 2.0},
        "validation": {"mask_mean": 0.375},
    },
)
INPUTS = ReportInputs(
    experiment="one",
    dataset="cifar10",
    statistics={"train": SPLIT, "test": SPLIT},
    class_counts={"cat": 4, "dog": 6},
    evaluation=EvaluationConfig(threat_models=("white_box",), epsilons=(8.0,)),
    metrics={
        "subject": "sfm",
        "minimum_norm": [],
        "vanished_gradients": [],
        "clean": [{"defence": "sfm", **FIGURES}],
        "under_attack": [{"attack": "pgd", **WHITE_BOX}],
        "worst_case": [{"strongest_attack": "pgd", **WHITE_BOX}],
    },
    blessing=Blessing(True, ("A reason.",)),
    history={"defence": EPOCHS},
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
    gallery=Gallery(IMAGES, IMAGES[..., :1], IMAGES, IMAGES),
    perturbations=(Perturbation("white_box", "pgd", 8.0, IMAGES, IMAGES),),
)


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    return {section.title: section for section in build_sections(INPUTS)}


def cells(section: Section, title: str) -> dict[str, list[str]]:
    (table,) = (table for table in section.tables if table.title == title)
    return {row.label: [str(cell) for cell in row.cells] for row in table.rows}


def test_the_sections_and_their_order(sections):
    assert list(sections) == [
        "Worst case",
        "Black box",
        "Gray box",
        "White box",
        "Beside the paper",
        "What the defence does",
        "Training",
        "Data",
        "Provenance",
    ]


def test_only_a_threat_model_that_was_run_has_figures(sections):
    assert [figure.name for figure in sections["White box"].figures] == [
        "accuracy_white_box",
        "perturbation_white_box_pgd_8",
    ]
    assert sections["Gray box"].figures == ()
    assert "The gray box was not run." in sections["Gray box"].paragraphs


def test_every_cell_of_every_table_says_something(sections):
    tables = [table for section in sections.values() for table in section.tables]
    assert len(tables) == 11
    for table in tables:
        for row in table.rows:
            assert row.label
            assert len(row.cells) == len(table.columns) - 1
            assert all(cell.value for cell in row.cells)


def test_other_datasets_are_not_put_beside_the_paper():
    titles = [s.title for s in build_sections(dataclasses.replace(INPUTS, dataset="digits"))]
    assert "Beside the paper" not in titles


def test_a_model_of_ones_own_has_neither_masks_nor_training():
    own = build_sections(dataclasses.replace(INPUTS, gallery=None, history={}))
    titles = [section.title for section in own]
    assert "What the defence does" not in titles
    assert "Training" not in titles


def test_further_threat_models_are_shown_where_they_were_run():
    evaluation = dataclasses.replace(INPUTS.evaluation, threat_models=("white_box", "score_based"))
    titles = [s.title for s in build_sections(dataclasses.replace(INPUTS, evaluation=evaluation))]
    assert titles[1:5] == ["Black box", "Gray box", "White box", "Score-based"]


def test_smallest_perturbations_stand_below_the_accuracies():
    entry = {"defence": "sfm", "threat_model": "white_box", "attack": "cw", "examples": 10}
    found = {"attack_success": 0.5, "median_linf": 0.01, "median_l2": 0.1}
    metrics = {**INPUTS.metrics, "minimum_norm": [{**entry, **found}]}
    sections = build_sections(dataclasses.replace(INPUTS, metrics=metrics))
    tables = {section.title: [t.title for t in section.tables] for section in sections}
    assert tables["White box"][1] == "Smallest perturbations, at any norm"
    assert len(tables["Gray box"]) == 1


def test_curves_are_those_that_were_measured(sections):
    (figure,) = sections["Training"].figures
    assert figure.alternative_text == (
        "Curves over the epochs; last values: classification loss (training) 1, "
        "mask loss (training) 2, mask mean (validation) 0.375."
    )


def test_data_and_provenance_are_those_of_the_inputs(sections):
    assert cells(sections["Data"], "Test images of each class") == {
        "cat": ["4", "4"],
        "dog": ["6", "6"],
    }
    assert cells(sections["Data"], "Images of cifar10")["test"] == [
        "10",
        "0",
        "0.250, 0.500, 0.750",
        "0.125, 0.125, 0.000",
    ]
    assert cells(sections["Provenance"], "Stages") == {
        "train": ["0123456789abcdef", "3", "2025-01-02T03:04:05+00:00", "1,234.6"]
    }
    assert cells(sections["Provenance"], "Packages") == {"keras": ["3.15.1"]}
    assert cells(sections["Provenance"], "Settings") == {
        "train: training.epochs": ["2"],
        "train: training.augmentation": ['"none"'],
    }


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
