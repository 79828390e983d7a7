import dataclasses

import numpy as np
import pytest

from sfm_tf.audit.verdict import RULE_TEXT, AuditVerdict
from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics, MinimumNorm
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.example_images import mask_statistics
from sfm_tf.report.inputs import (
    Audit,
    FailureGallery,
    Gallery,
    PerceivedPerturbation,
    Perturbation,
    RowCommand,
)
from sfm_tf.report.sections import (
    Section,
    audit_section,
    build_sections,
    class_section,
    commands_section,
    data_section,
    defence_section,
    failure_section,
    paired_section,
    provenance_section,
    strength_section,
    training_section,
)
from tests import made_up

FIGURES = made_up.HALF_RIGHT
INPUTS = made_up.inputs()
NAMES = {"white_box": "white box"}

IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
GALLERY = Gallery(IMAGES, IMAGES[..., :1], IMAGES, IMAGES)
ATTACKED = Perturbation("white_box", "pgd", 8.0, IMAGES, IMAGES)
PERCEIVED = PerceivedPerturbation(ATTACKED, IMAGES, IMAGES, IMAGES)
MASKS = mask_statistics(IMAGES[..., :1], np.array([0, 0]), ("cat", "dog"))
FAILURE = {
    "image_index": 3,
    "label": "cat",
    "prediction": "dog",
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "size": 7.5,
    "loss": 2.0,
}
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
TUNING = [{"sparsity_weight": 0.01, "clean": 0.5, "black_box": 0.5, "gray_box": 0.25}]


WHOLE = dataclasses.replace(
    INPUTS,
    dataset="cifar10",
    statistics={"train": SPLIT, "test": SPLIT},
    class_counts={"cat": 4, "dog": 6},
    evaluation=EvaluationConfig(threat_models=("white_box",), epsilons=(8.0,)),
    metrics=dataclasses.replace(
        INPUTS.metrics,
        under_attack=(made_up.attacked("white_box", "pgd", 8.0, FIGURES),),
        worst_case=(made_up.worst("white_box", 8.0, FIGURES),),
    ),
    history={"defence": EPOCHS},
    manifests=(
        made_up.manifest("train", {"training": {"epochs": 2, "augmentation": "none"}}, seed=3),
    ),
    gallery=GALLERY,
    perturbations=(ATTACKED,),
)


def cells(section: Section, title: str) -> dict[str, list[str]]:
    (table,) = (table for table in section.tables if table.title == title)
    return made_up.cells(table)


def test_classes_have_a_row_each_and_one_that_was_not_looked_at_says_so():
    per_class = [
        {"class": "cat", "clean": FIGURES, "worst_case": FIGURES},
        {"class": "dog", "clean": None, "worst_case": None},
    ]
    breakdown = {"per_class": per_class, "confusion": None}
    section = class_section(dataclasses.replace(INPUTS, breakdown=breakdown), NAMES)
    (table,) = section.tables
    assert made_up.cells(table) == {"cat": ["50.0% (24.0–76.0)"] * 2, "dog": ["not run"] * 2}
    assert [figure.name for figure in section.figures] == ["classes"]
    assert section.paragraphs[0].startswith("No attack at a radius was run")


def test_a_failure_has_a_row_and_a_column():
    gallery = FailureGallery([FAILURE], IMAGES[:1], IMAGES[:1])
    section = failure_section(dataclasses.replace(INPUTS, failures=gallery), NAMES)
    assert section.tables[0].rows[0].label == "number 3"
    assert [figure.name for figure in section.figures] == ["failures"]
    assert section.paragraphs == ()


def test_no_failure_and_no_results_are_said():
    nothing = FailureGallery([], IMAGES[:0], IMAGES[:0])
    section = failure_section(dataclasses.replace(INPUTS, failures=nothing), NAMES)
    assert section.paragraphs[0].startswith("No attack at a radius broke an image.")
    for section in (failure_section(INPUTS, NAMES), class_section(INPUTS, NAMES)):
        assert "are not stored" in section.paragraphs[0]
        assert section.tables == section.figures == ()


def test_a_figure_of_the_paper_that_has_no_counterpart_is_said():
    section = defence_section(INPUTS, GALLERY)
    assert [figure.name for figure in section.figures] == ["defence"]
    assert section.tables == ()
    assert len(section.paragraphs) == 3
    assert "Figure 1 of the paper" in section.paragraphs[0]
    assert "Figure 5 of the paper" in section.paragraphs[2]


def test_figures_come_in_the_order_of_the_paper():
    inputs = dataclasses.replace(
        INPUTS, perceived=PERCEIVED, ablations={"no semantic loss": GALLERY}, masks=MASKS
    )
    section = defence_section(inputs, GALLERY)
    assert [figure.name for figure in section.figures] == ["perceived", "defence", "ablations"]
    assert section.figures[0].caption.startswith("PGD, white box, ε = 8/255 in L∞")
    assert [row.label for row in section.tables[0].rows] == ["all", "cat", "dog"]
    assert section.paragraphs == ()


def test_ablations_are_shown_beside_the_complete_training_of_their_own():
    scores = {
        "words": "no semantic loss",
        "clean": 0.5,
        "black_box": 0.5,
        "gray_box": 0.5,
        "examples": 10,
        "epsilon": 8.0,
        "mask_mean": 0.5,
        "mask_spread": 0.1,
        "collapse": "",
        "failure": "",
    }
    dark = dataclasses.replace(GALLERY, masks=0.0 * GALLERY.masks)
    inputs = dataclasses.replace(
        INPUTS,
        ablations={"complete": dark, "no semantic loss": GALLERY},
        ablation_scores=({**scores, "words": "complete"}, scores),
    )
    section = defence_section(inputs, GALLERY)
    assert section.figures[-1].name == "ablations"
    assert section.figures[-1].alternative_text.endswith("complete 0.00.")
    assert [row.label for row in section.tables[0].rows] == ["complete", "no semantic loss"]


def test_data_and_provenance_are_those_of_the_inputs():
    assert cells(data_section(WHOLE), "Test images of each class") == {
        "cat": ["4", "4"],
        "dog": ["6", "6"],
    }
    assert cells(data_section(WHOLE), "Images of cifar10")["test"] == [
        "10",
        "0",
        "0.250, 0.500, 0.750",
        "0.125, 0.125, 0.000",
    ]
    assert cells(provenance_section(WHOLE), "Stages") == {
        "train": ["cdcdcdcdcdcdcdcd", "3", "2025-01-02T03:04:05+00:00", "1.0"]
    }
    assert cells(provenance_section(WHOLE), "Packages") == {"keras": ["3.15.1"]}
    assert cells(provenance_section(WHOLE), "Settings") == {
        "train: training.epochs": ["2"],
        "train: training.augmentation": ['"none"'],
    }


def test_every_row_has_its_command_and_what_it_depends_on_is_told():
    commands = (
        RowCommand("all", "worst_case", None, "python -m pipelines.evaluate"),
        RowCommand("white_box", "worst_case", 8.0, "python -m pipelines.evaluate --epsilons=8"),
        RowCommand("black_box", "pgd", 0.5, "python -m pipelines.evaluate --attacks=pgd"),
    )
    section = commands_section(dataclasses.replace(WHOLE, commands=commands))
    assert cells(section, "Commands") == {
        "all threat models, all radii": ["python -m pipelines.evaluate"],
        "white box, 8/255": ["python -m pipelines.evaluate --epsilons=8"],
        "black box, PGD 0.5/255": ["python -m pipelines.evaluate --attacks=pgd"],
    }
    assert len(section.paragraphs) == 1
    evaluation = dataclasses.replace(WHOLE.evaluation, robust_accuracy_only=True)
    section = commands_section(dataclasses.replace(WHOLE, commands=commands, evaluation=evaluation))
    assert section.paragraphs[1].endswith("so a command runs those too.")


def test_the_audit_shows_verdict_rule_and_every_check_those_that_passed_folded():
    findings = [
        made_up.finding("pass"),
        made_up.finding("warn", False),
        made_up.finding("fail"),
        made_up.finding("not_run"),
    ]
    section = audit_section(Audit(findings, AuditVerdict("not_credible", "1 check failed.")))
    assert section.paragraphs == (
        "Not credible: 1 passed · 1 warning · 1 failed · 1 not run.",
        "1 check failed.",
        f"The rule: {RULE_TEXT}",
    )
    others, passed = section.tables
    assert [(row.label, str(row.cells[0])) for row in others.rows] == [
        ("Title warn", "warn"),
        ("Title fail", "fail, must pass"),
        ("Title not_run", "not run, must pass"),
    ]
    assert made_up.cells(passed) == {
        "Title pass": ["pass, must pass", "3 of 9 images.", "It matters.", "Who"]
    }
    assert (others.is_folded, passed.is_folded) == (False, True)


def test_an_audit_that_passed_has_nothing_open_and_a_missing_one_is_said():
    (table,) = audit_section(
        Audit([made_up.finding("pass")], AuditVerdict("credible", "So."))
    ).tables
    assert table.is_folded
    section = audit_section(None)
    assert section.paragraphs[0].startswith("The evaluation was not audited")
    assert section.tables == ()


def test_what_was_not_probed_is_said():
    section = strength_section(INPUTS, NAMES)
    assert len(section.paragraphs) == 4
    assert section.figures == ()


def test_a_partial_probe_shows_what_there_is():
    inputs = dataclasses.replace(INPUTS, probes=dataclasses.replace(made_up.PROBES, curve=()))
    section = strength_section(inputs, NAMES)
    assert [figure.name for figure in section.figures] == ["accuracy_ladder"]
    assert len(section.paragraphs) == 3


def _pair(other, first, second, p_value, holm_p_value, **keys):
    return {
        "threat_model": "white_box",
        "attack": "worst_case",
        "epsilon": 8.0,
        "defence": "sfm",
        "other": other,
        "examples": 100,
        "only_first_right": first,
        "only_second_right": second,
        "p_value": p_value,
        "holm_p_value": holm_p_value,
        **keys,
    }


def test_pairs_name_a_better_defence_only_where_the_corrected_test_does():
    paired = [
        _pair("tvm", 20, 2, 0.0001, 0.0004),
        _pair("jpeg", 2, 20, 0.0001, 0.0004),
        _pair("undefended", 9, 2, 0.03, 0.06),
        _pair("quilting", 5, 5, 1.0, 1.0, threat_model="all", epsilon=None),
        _pair("tvm", 30, 2, 0.0, None, attack="pgd"),
        _pair("tvm", 30, 2, 0.0, None, epsilon=4.0),
        _pair("jpeg", 30, 2, 0.0, None, defence="tvm"),
    ]
    section = paired_section(dataclasses.replace(INPUTS, paired=paired), NAMES)
    (table,) = section.tables
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [
        ("TVM, white box 8/255", "100", "20", "2", "0.0001", "0.0004", "SFM-Defence"),
        ("JPEG, white box 8/255", "100", "2", "20", "0.0001", "0.0004", "JPEG"),
        ("no defence, white box 8/255", "100", "9", "2", "0.03", "0.06", "not shown"),
        ("quilting, all threat models and radii", "100", "5", "5", "1", "1", "not shown"),
    ]


def test_curves_are_those_that_were_measured():
    section = training_section({"defence": EPOCHS})
    (figure,) = section.figures
    assert figure.alternative_text.endswith(
        "Last values: classification loss (training) 1, "
        "mask loss (training) 2, mask mean (validation) 0.375."
    )
    assert section.paragraphs[0].startswith("No tuning was run")
    (table,) = section.tables
    assert made_up.cells(table) == {"mask mean": ["0.375"]}


def test_a_tuning_says_what_it_was_scored_on_and_where_the_mask_collapsed():
    known = [
        {**TUNING[0], "examples": 1000, "epsilon": 8.0, "collapse": ""},
        {**TUNING[0], "sparsity_weight": 0.5, "collapse": "The mask collapsed to zeros."},
    ]
    section = training_section({"defence": EPOCHS}, known)
    assert [figure.name for figure in section.figures] == ["training", "tuning"]
    assert section.paragraphs == (
        "Trials of the tuning were scored on 1,000 validation images, under PGD at 8/255 in L∞.",
        "The mask collapsed in the trials with w₁ = 0.5.",
    )


COMPLETE = dataclasses.replace(
    WHOLE,
    audit=Audit(
        [made_up.finding("pass")],
        AuditVerdict("credible", "All is well."),
    ),
    probes=made_up.PROBES,
    paired=[_pair("tvm", 3, 0, 0.25, 0.25)],
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
    failures=FailureGallery([FAILURE], IMAGES[:1], 0.5 * IMAGES[:1]),
    masks=MASKS,
    perceived=PERCEIVED,
    tuning=TUNING,
    ablations={"no semantic loss": GALLERY},
)


def check_cells(sections) -> None:
    """Checks that no table has an empty cell, label or row too short."""
    for table in (table for section in sections for table in section.tables):
        for row in table.rows:
            assert row.label
            assert len(row.cells) == len(table.columns) - 1
            assert all(cell.value for cell in row.cells)


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    return {section.title: section for section in build_sections(WHOLE)}


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
    check_cells(sections.values())


def test_only_a_threat_model_that_was_run_has_figures(sections):
    assert [figure.name for figure in sections["White box"].figures] == [
        "accuracy_white_box",
        "perturbation_white_box_pgd_8",
    ]
    assert sections["Gray box"].figures == ()
    assert "The gray box was not run." in sections["Gray box"].paragraphs


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
    assert len(sections["Radius, steps and loss"].paragraphs) == 3
    assert len(sections["What the defence does"].paragraphs) == 3
    assert sections["Training"].paragraphs[0].startswith("No tuning was run")


def test_commands_stand_before_what_everything_was_made_from():
    command = RowCommand("white_box", "pgd", 8.0, "python -m pipelines.evaluate")
    given = dataclasses.replace(WHOLE, commands=(command,))
    titles = [section.title for section in build_sections(given)]
    assert titles[-3:] == ["How to run a row again", "Data", "Provenance"]


def test_other_datasets_are_not_put_beside_the_paper():
    titles = [s.title for s in build_sections(dataclasses.replace(WHOLE, dataset="digits"))]
    assert "Beside the paper" not in titles


def test_a_model_of_ones_own_has_neither_masks_nor_training():
    own = build_sections(dataclasses.replace(WHOLE, gallery=None, history={}))
    titles = [section.title for section in own]
    assert "What the defence does" not in titles
    assert "Training" not in titles


def test_a_partial_evaluation_of_ones_own_model_leaves_no_cell_and_no_bar_empty():
    metrics = Metrics(
        subject="model",
        clean=tuple(CleanAccuracy(defence=name, **FIGURES) for name in ("model", "jpeg")),
        # Neither FGSM at the larger radius nor anything on the other defence was run.
        under_attack=tuple(
            made_up.attacked("white_box", attack, epsilon, FIGURES, "model")
            for attack, epsilon in (("fgsm", 8.0), ("pgd", 8.0), ("pgd", 16.0))
        ),
        worst_case=tuple(
            made_up.worst("white_box", epsilon, FIGURES, "model") for epsilon in (8.0, None)
        ),
    )
    partial = dataclasses.replace(
        WHOLE,
        metrics=metrics,
        evaluation=dataclasses.replace(WHOLE.evaluation, epsilons=(8.0, 16.0)),
        gallery=None,
        history={},
        perturbations=(),
        manifests=(),
    )
    sections = {section.title: section for section in build_sections(partial)}
    check_cells(sections.values())
    (table,) = sections["White box"].tables
    assert [row.label for row in table.rows] == ["own model", "JPEG"]
    own_cells, other_cells = ([cell.value for cell in row.cells] for row in table.rows)
    assert own_cells == ["50.0%", "50.0%", "not run", *["50.0%"] * 3, "not run"]
    assert other_cells == ["50.0%", *["not run"] * 6]
    (figure,) = sections["White box"].figures
    assert figure.alternative_text.endswith(
        "own model: clean 50.0%, FGSM 8/255 50.0%, FGSM 16/255 not run, PGD 8/255 50.0%, "
        "PGD 16/255 50.0%, worst case 8/255 50.0%, worst case 16/255 not run. "
        "JPEG: clean 50.0%, FGSM 8/255 not run, FGSM 16/255 not run, PGD 8/255 not run, "
        "PGD 16/255 not run, worst case 8/255 not run, worst case 16/255 not run."
    )


def test_further_threat_models_are_shown_where_they_were_run():
    evaluation = dataclasses.replace(WHOLE.evaluation, threat_models=("white_box", "score_based"))
    titles = [s.title for s in build_sections(dataclasses.replace(WHOLE, evaluation=evaluation))]
    assert titles[2:6] == ["Black box", "Gray box", "White box", "Score-based"]


def test_smallest_perturbations_stand_below_the_accuracies():
    found = {"attack_success": 0.5, "median_linf": 0.01, "median_l2": 0.1}
    key = {"defence": "sfm", "threat_model": "white_box", "attack": "cw"}
    smallest = (MinimumNorm(**key, **found, **FIGURES),)
    metrics = dataclasses.replace(WHOLE.metrics, minimum_norm=smallest)
    sections = build_sections(dataclasses.replace(WHOLE, metrics=metrics))
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
    check_cells(sections.values())
    assert sections["Audit"].paragraphs[:2] == ("Credible: 1 passed.", "All is well.")
    assert list(sections)[:2] == ["Worst case", "Audit"]
    shown = ("Differences between defences", "Classes", "Worst failures", "What the defence does")
    assert all(sections[title].tables for title in shown)
