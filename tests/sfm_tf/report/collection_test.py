import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import AuditVerdict, write_audit
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import join_results
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.collection import (
    accuracy_by_radius,
    collect_inputs,
    find_studies,
    study_fields,
    training_seconds,
)
from sfm_tf.report.example_images import defence_images
from sfm_tf.report.inputs import Audit
from sfm_tf.report.settings import ReportConfig
from sfm_tf.training.model_files import load_defended_model
from tests import made_up

WEIGHTS = {"semantic_weight": 20.0, "reconstruction_weight": 1.0, "epochs": 4}
SCORES = {"clean": 0.9, "black_box": 0.8, "gray_box": 0.7, "examples": 50, "epsilon": 16.0}
TRIAL = {**WEIGHTS, **SCORES, "rho": 1.6, "collapse": "", "failure": ""}


def make(run_directory, stage, records, produce):
    execution = Execution(
        stage=stage,
        modules=["sfm_tf.errors"],
        configs={"data": DataConfig()},
        seed=0,
        inputs={"ingest": records},
    )
    return execute(execution, run_directory, produce).artifact


@pytest.fixture(name="made", scope="module")
def _made(new_run):
    """A working directory, its records and models, and a tuning and ablations of them."""
    run_directory = new_run("train")
    records, models = run_directory.latest("ingest"), run_directory.latest("train")

    def tuned(folder):
        trials = [{**TRIAL, "sparsity_weight": weight} for weight in (0.3, 0.2)]
        write_json(folder / "trials.json", {"trials": trials})
        write_json(folder / "best.json", trials[1])

    def ablated(folder):
        entry = {**TRIAL, "words": "no semantic loss", "name": "no_semantic_loss"}
        failed = {**entry, "words": "frozen target", "name": "frozen", "failure": "A nan."}
        write_json(folder / "ablations.json", [entry, failed])
        shutil.copytree(models.folder, folder / "no_semantic_loss")

    make(run_directory, "tune", records, tuned)
    make(run_directory, "ablate", records, ablated)
    return run_directory, records, models


def test_studies_of_the_same_records_are_found(made):
    run_directory, records, _ = made
    found = find_studies(run_directory, records)
    assert found == {stage: run_directory.latest(stage) for stage in ("tune", "ablate")}


def test_nothing_is_found_where_nothing_has_run_or_only_on_other_records(made, tmp_path):
    run_directory, _, models = made
    empty = RunDirectory(tmp_path)
    assert find_studies(empty, models) == {}
    # Any other artifact stands for other records.
    assert find_studies(run_directory, models) == {}
    assert study_fields({}, np.zeros((1, 8, 8, 1), np.float32)) == {}


def test_figures_3_and_5_are_of_the_stored_trials_and_models(made):
    run_directory, records, models = made
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    fields = study_fields(find_studies(run_directory, records), images)
    assert [point["sparsity_weight"] for point in fields["tuning"]] == [0.2, 0.3]
    assert [entry["words"] for entry in fields["ablation_scores"]] == [
        "no semantic loss",
        "frozen target",
    ]
    (words, gallery), *others = fields["ablations"].items()
    assert (words, others) == ("no semantic loss", [])
    expected = defence_images(load_defended_model(models.folder), images)
    np.testing.assert_allclose(gallery.masks, expected.masks, atol=1e-6)
    np.testing.assert_array_equal(gallery.images, images)


_TIMING = {"classifier_seconds": 100.0, "masker_seconds": 60.0, "source_seconds": 40.0}
_TRAINING = {"pretraining_epochs": 4, "epochs": 6, "source_epochs": 5}


def _artifact(folder: pathlib.Path, timing=None, wall_seconds=0.0) -> Artifact:
    folder.mkdir()
    if timing is not None:
        write_json(folder / "timing.json", timing)
    manifest = made_up.manifest(folder.name, {"training": _TRAINING})
    return Artifact(folder, dataclasses.replace(manifest, wall_seconds=wall_seconds))


def test_a_defence_costs_the_classifier_and_what_was_trained_for_it(tmp_path):
    parts = {"classifier_seconds": 500.0, "masker_seconds": 30.0}
    inputs = {
        "train": _artifact(tmp_path / "train", _TIMING),
        "fit_quilting": _artifact(tmp_path / "fit_quilting", wall_seconds=7.0),
        "train_adversarially": _artifact(
            tmp_path / "train_adversarially", {"sfm_adversarial_training": parts}
        ),
    }
    names = ["undefended", "sfm", "jpeg", "quilting", "sfm_adversarial_training"]
    assert training_seconds(inputs, names) == {
        "undefended": 100.0,
        "sfm": 160.0,
        "jpeg": 100.0,
        "quilting": 107.0,
        "sfm_adversarial_training": 530.0,
    }


def test_an_alternation_by_steps_is_compared_with_passes_of_the_source_model(tmp_path):
    timing = {**_TIMING, "classifier_seconds": 30.0, "masker_seconds": 0.0, "both_seconds": 120.0}
    inputs = {"train": _artifact(tmp_path / "train", timing)}
    # 10 passes, of which 5 took the source model 40 seconds.
    assert training_seconds(inputs, ["undefended", "sfm"]) == {"undefended": 80.0, "sfm": 150.0}


def test_a_model_of_ones_own_has_no_training(tmp_path):
    assert training_seconds({"ingest": _artifact(tmp_path / "ingest")}, ["model"]) == {}


@pytest.fixture(name="run", scope="module")
def _run(evaluation):
    return evaluation.folder.parents[1]


@pytest.fixture(name="artifacts", scope="module")
def _artifacts(run):
    return _stored(run)


@pytest.fixture(name="inputs", scope="module")
def _collected(artifacts):
    return _collect(artifacts)


@pytest.fixture(name="copied")
def _copied(run, tmp_path):
    """A run that a test may change."""
    return _stored(shutil.copytree(run, tmp_path / "run"))


def _stored(folder):
    run_directory = RunDirectory(folder)
    evaluation = run_directory.latest("evaluate")
    return _inputs(run_directory, evaluation), evaluation


def _inputs(run_directory, evaluation):
    return {name: run_directory.input_of(evaluation, name) for name in ("ingest", "train")}


def _collect(artifacts):
    return collect_inputs("digits", *artifacts, ReportConfig(gallery_examples=3))


def test_counts_the_classes_of_the_evaluated_images(artifacts, inputs):
    records = artifacts[0]["ingest"].folder
    _, labels = load_split(records, "test", read_schema(records), 12)
    expected = {str(digit): int(np.sum(labels == digit)) for digit in range(10)}
    assert inputs.class_counts == expected


def test_shows_the_first_test_images_behind_mask_and_preprocessing(inputs):
    gallery = inputs.gallery
    assert gallery.masks.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(gallery.masked, gallery.masks * gallery.images, rtol=1e-6)
    expected = np.rint(gallery.masked * 15) / 15  # T is bit_depth_4.
    np.testing.assert_allclose(gallery.defended, expected, atol=1e-6)


def test_shows_each_threat_models_perturbation_of_those_images(inputs):
    assert [p.threat_model for p in inputs.perturbations] == ["black_box", "gray_box", "white_box"]
    for perturbation in inputs.perturbations:
        np.testing.assert_array_equal(perturbation.images, inputs.gallery.images)
        distance = np.abs(perturbation.adversarial_images - perturbation.images).max()
        assert 0.0 < distance <= 16 / 255 + 1e-6


def test_a_deleted_set_says_what_to_do(copied):
    made_from, evaluation = copied
    for path in (evaluation.folder / "adversarial").glob("*.tfrecord"):
        path.unlink()
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        collect_inputs("digits", made_from, evaluation, ReportConfig())


def test_tells_what_the_defences_cost_and_took_to_train(inputs):
    assert [entry.defence for entry in inputs.costs] == ["undefended", "sfm"]
    assert inputs.training_seconds == {"undefended": 1.0, "sfm": 2.0}
    assert inputs.detection is None


def test_shows_what_the_classifier_sees_of_the_white_box_at_the_smallest_radius(inputs):
    perceived, (*_, white_box) = inputs.perceived, inputs.perturbations
    assert (perceived.attacked.threat_model, perceived.attacked.epsilon) == ("white_box", 16.0)
    expected = white_box.adversarial_images - white_box.images
    np.testing.assert_allclose(perceived.undefended, expected, atol=1e-7)
    squeezed = [
        np.rint(part * 15) / 15 for part in (white_box.adversarial_images, white_box.images)
    ]
    np.testing.assert_allclose(perceived.preprocessed, squeezed[0] - squeezed[1], atol=1e-6)


def test_measures_the_masks_of_all_evaluated_images(inputs):
    assert inputs.masks["examples"] == 12
    examples = {entry["class"]: entry["examples"] for entry in inputs.masks["per_class"]}
    assert examples == inputs.class_counts


def test_breaks_down_and_pairs_the_results_of_single_images(inputs):
    clean = [entry["clean"] for entry in inputs.breakdown["per_class"] if entry["clean"]]
    headline = inputs.metrics.clean_accuracy("sfm")
    assert sum(entry["correct"] for entry in clean) == headline.correct
    assert {(entry["defence"], entry["other"]) for entry in inputs.paired} == {
        ("sfm", "undefended")
    }


def test_accuracy_falls_with_the_radius_from_no_attack_to_the_worst_case(inputs):
    found = {(each.defence, each.epsilon): each for each in inputs.accuracy_by_radius}
    assert list(found) == [
        (name, epsilon) for name in ("undefended", "sfm") for epsilon in (0.0, 16.0)
    ]
    for name in ("undefended", "sfm"):
        assert found[name, 0.0].accuracy == inputs.metrics.clean_accuracy(name).accuracy
        assert found[name, 16.0].accuracy == inputs.metrics.worst(name).accuracy


def test_an_image_counts_only_after_every_attack_up_to_the_radius():
    table = join_results(
        [
            made_up.rows("none", "clean", 0.0, 10, 10),
            made_up.rows("white_box", "pgd", 8.0, 4, 10),
            # An attack that is weaker at the larger radius takes nothing back.
            made_up.rows("white_box", "pgd", 16.0, 6, 10),
            made_up.rows("decision_based", "hop_skip_jump", 4.0, 1, 2),
        ]
    )
    found = accuracy_by_radius(table)
    assert [(each.epsilon, each.correct, each.examples) for each in found] == [
        (0.0, 10, 10),
        (4.0, 1, 2),
        # Images 0, 2 and 3: the other attack broke image 1.
        (8.0, 3, 10),
        (16.0, 3, 10),
    ]


def test_a_failure_is_shown_as_the_attack_left_it(inputs):
    failures = inputs.failures
    for failure, image, adversarial in zip(
        failures.failures, failures.images, failures.adversarial_images, strict=True
    ):
        size = 255 * np.abs(adversarial.astype(float) - image).max()
        assert size == pytest.approx(failure["size"], abs=0.01)


def test_probes_and_audit_are_read_where_they_are_stored(copied):
    made_from, evaluation = copied
    for name in ("audit.json", "probes.json"):
        (evaluation.folder / name).unlink(missing_ok=True)
    inputs = collect_inputs("digits", made_from, evaluation, ReportConfig())
    assert inputs.probes is None
    assert inputs.audit is None
    finding = Finding("noise", "Noise breaks least", "pass", "1 of 9.", "Why.", "Who", True)
    audit = Audit((finding,), AuditVerdict("credible", "All is well."))
    write_audit(evaluation.folder / "audit.json", audit.findings, audit.verdict)
    write_json(evaluation.folder / "probes.json", made_up.PROBES.to_json())
    inputs = collect_inputs("digits", made_from, evaluation, ReportConfig())
    assert inputs.probes == made_up.PROBES
    assert inputs.audit == audit
