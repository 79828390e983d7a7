import dataclasses

import numpy as np
import pytest

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.report.mask_statistics import mask_statistics
from sfm_tf.report.report_inputs import (
    Audit,
    FailureGallery,
    Gallery,
    PerceivedPerturbation,
    Perturbation,
    ReportInputs,
)
from sfm_tf.report.row_commands import RowCommand
from sfm_tf.report.section import Section
from sfm_tf.report.sections import build_sections

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


CHANGE = np.full_like(IMAGES, 0.125)
WORST = {"threat_model": "white_box", "attack": "worst_case", "epsilon": 8.0}
FAILURE = {
    "image_index": 1,
    "label": "cat",
    "prediction": "dog",
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "size": 8.0,
    "loss": 2.0,
}
COMPLETE = dataclasses.replace(
    INPUTS,
    audit=Audit(
        [Finding("noise", "Noise breaks least", "pass", "1 of 9.", "Chance.", "Someone", True)],
        AuditVerdict("credible", "All is well."),
    ),
    probes={
        "settings": {"examples": 4},
        "ladder": [{"epsilon": 0.0, "examples": 4, "correct": 3}],
        "curve": [{"steps": 0, "median_loss": 1.0, "mean_loss": 1.0, "success": 0.25}],
    },
    paired=[
        {
            **WORST,
            "defence": "sfm",
            "other": "tvm",
            "examples": 10,
            "only_first_right": 3,
            "only_second_right": 0,
            "p_value": 0.25,
            "holm_p_value": 0.25,
        }
    ],
    breakdown={
        "per_class": [
            {"class": "cat", "clean": FIGURES, "worst_case": FIGURES},
            {"class": "dog", "clean": FIGURES, "worst_case": None},
        ],
        "confusion": {
            "threat_model": "white_box",
            "attack": "pgd",
            "epsilon": 8.0,
            "turned_wrong": 3,
            "counts": [[1, 3], [0, 6]],
        },
    },
    failures=FailureGallery([FAILURE], IMAGES[:1], IMAGES[:1] + CHANGE[:1]),
    masks=mask_statistics(IMAGES[..., :1], np.array([0, 0]), ("cat", "dog")),
    perceived=PerceivedPerturbation(INPUTS.perturbations[0], CHANGE, CHANGE, CHANGE),
    tuning=[{"sparsity_weight": 0.01, "clean": 0.5, "black_box": 0.5, "gray_box": 0.5}],
    ablations={"no semantic loss": INPUTS.gallery},
)


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    return {section.title: section for section in build_sections(INPUTS)}


def test_the_sections_and_their_order(sections):
    assert list(sections) == [
        "Worst case",
        "Audit",
        "Black box",
        "Gray box",
        "White box",
        "Radius, steps and loss",
        "Differences between defences",
        "Classes",
        "Worst failures",
        "Beside the paper",
        "Cost",
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
    assert len(tables) == 13
    for table in tables:
        for row in table.rows:
            assert row.label
            assert len(row.cells) == len(table.columns) - 1
            assert all(cell.value for cell in row.cells)


def test_a_section_says_what_was_not_run_instead_of_showing_it(sections):
    assert [title for title, section in sections.items() if not section.tables] == [
        "Audit",
        "Radius, steps and loss",
        "Differences between defences",
        "Classes",
        "Worst failures",
        "Cost",
        "What the defence does",
    ]
    for title in ("Audit", "Differences between defences", "Classes", "Worst failures", "Cost"):
        (sentence,) = sections[title].paragraphs
        assert sentence.endswith(".")
        assert sections[title].figures == ()
    assert len(sections["Radius, steps and loss"].paragraphs) == 2
    assert len(sections["What the defence does"].paragraphs) == 3
    assert sections["Training"].paragraphs[0].startswith("No tuning was run")


def test_commands_stand_before_what_everything_was_made_from():
    command = RowCommand("white_box", "pgd", 8.0, "python -m pipelines.evaluate")
    given = dataclasses.replace(INPUTS, commands=(command,))
    titles = [section.title for section in build_sections(given)]
    assert titles[-3:] == ["How to run a row again", "Data", "Provenance"]


def test_other_datasets_are_not_put_beside_the_paper():
    titles = [s.title for s in build_sections(dataclasses.replace(INPUTS, dataset="digits"))]
    assert "Beside the paper" not in titles


def test_a_model_of_ones_own_has_neither_masks_nor_training():
    own = build_sections(dataclasses.replace(INPUTS, gallery=None, history={}))
    titles = [section.title for section in own]
    assert "What the defence does" not in titles
    assert "Training" not in titles


def test_a_partial_evaluation_of_ones_own_model_leaves_no_cell_and_no_bar_empty():
    own = {**WHITE_BOX, "defence": "model"}
    metrics = {
        **INPUTS.metrics,
        "subject": "model",
        "clean": [{"defence": name, **FIGURES} for name in ("model", "jpeg")],
        # Neither FGSM at the larger radius nor anything on the other defence was run.
        "under_attack": [
            {**own, "attack": attack, "epsilon": epsilon}
            for attack, epsilon in (("fgsm", 8.0), ("pgd", 8.0), ("pgd", 16.0))
        ],
        "worst_case": [
            {**own, "strongest_attack": "pgd", "epsilon": epsilon} for epsilon in (8.0, None)
        ],
    }
    partial = dataclasses.replace(
        INPUTS,
        metrics=metrics,
        evaluation=dataclasses.replace(INPUTS.evaluation, epsilons=(8.0, 16.0)),
        gallery=None,
        history={},
        perturbations=(),
        manifests=(),
    )
    sections = {section.title: section for section in build_sections(partial)}
    cells = [
        cell
        for section in sections.values()
        for table in section.tables
        for row in table.rows
        for cell in row.cells
    ]
    assert all(cell.value for cell in cells)
    (table,) = sections["White box"].tables
    assert [row.label for row in table.rows] == ["own model", "JPEG"]
    own_cells, other_cells = ([cell.value for cell in row.cells] for row in table.rows)
    assert own_cells == ["50.0%", "50.0%", "not run", "50.0%", "50.0%", "50.0%", "not run"]
    assert other_cells == ["50.0%", *["not run"] * 6]
    (figure,) = sections["White box"].figures
    assert figure.alternative_text.endswith(
        "own model: clean 50.0%, FGSM 8/255 50.0%, FGSM 16/255 not run, PGD 8/255 50.0%, "
        "PGD 16/255 50.0%, worst case 8/255 50.0%, worst case 16/255 not run. "
        "JPEG: clean 50.0%, FGSM 8/255 not run, FGSM 16/255 not run, PGD 8/255 not run, "
        "PGD 16/255 not run, worst case 8/255 not run, worst case 16/255 not run."
    )


def test_further_threat_models_are_shown_where_they_were_run():
    evaluation = dataclasses.replace(INPUTS.evaluation, threat_models=("white_box", "score_based"))
    titles = [s.title for s in build_sections(dataclasses.replace(INPUTS, evaluation=evaluation))]
    assert titles[2:6] == ["Black box", "Gray box", "White box", "Score-based"]


def test_smallest_perturbations_stand_below_the_accuracies():
    entry = {"defence": "sfm", "threat_model": "white_box", "attack": "cw", "examples": 10}
    found = {"attack_success": 0.5, "median_linf": 0.01, "median_l2": 0.1}
    metrics = {**INPUTS.metrics, "minimum_norm": [{**FIGURES, **entry, **found}]}
    sections = build_sections(dataclasses.replace(INPUTS, metrics=metrics))
    tables = {section.title: [t.title for t in section.tables] for section in sections}
    assert tables["White box"][1] == "Smallest perturbations, at any norm"
    assert len(tables["Gray box"]) == 1


def test_everything_that_was_measured_is_shown_and_every_figure_has_a_name_of_its_own():
    sections = {section.title: section for section in build_sections(COMPLETE)}
    figures = [figure.name for section in sections.values() for figure in section.figures]
    assert len(set(figures)) == len(figures)
    assert [f.name for f in sections["What the defence does"].figures] == [
        "perceived",
        "defence",
        "ablations",
    ]
    for section in sections.values():
        for table in section.tables:
            assert table.rows
            assert all(cell.value for row in table.rows for cell in row.cells)
    assert sections["Audit"].paragraphs[0] == "Credible. All is well."
    assert list(sections)[:2] == ["Worst case", "Audit"]
    shown = ("Differences between defences", "Classes", "Worst failures", "What the defence does")
    assert all(sections[title].tables for title in shown)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
