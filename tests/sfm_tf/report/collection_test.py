import shutil

import numpy as np
import pytest

from sfm_tf import experiments, testing
from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.stored_audit import write_audit
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.config import ReportConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.report.collection import collect_inputs
from sfm_tf.report.report_inputs import Audit


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    testing.make_evaluation(RunDirectory(folder))
    return folder


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
    assert [entry["defence"] for entry in inputs.costs] == ["undefended", "sfm"]
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
    (headline,) = (e for e in inputs.metrics["clean"] if e["defence"] == "sfm")
    assert sum(entry["correct"] for entry in clean) == headline["correct"]
    assert {(entry["defence"], entry["other"]) for entry in inputs.paired} == {
        ("sfm", "undefended")
    }


def test_a_failure_is_shown_as_the_attack_left_it(inputs):
    failures = inputs.failures
    for failure, image, adversarial in zip(
        failures.failures, failures.images, failures.adversarial_images, strict=True
    ):
        size = 255 * np.abs(adversarial.astype(float) - image).max()
        assert size == pytest.approx(failure["size"], abs=0.01)


def test_rows_have_commands_where_the_preset_is_known(artifacts, inputs):
    assert inputs.commands == ()
    preset = experiments.preset("digits")
    commands = collect_inputs("digits", *artifacts, ReportConfig(), preset).commands
    assert [tuple(each.condition) for each in commands][:2] == [
        ("all", "worst_case", None),
        ("black_box", "fgsm", 16.0),
    ]
    assert all("--experiment=digits --seed=0 --num_examples=12" in e.command for e in commands)


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
    write_json(evaluation.folder / "probes.json", {"ladder": []})
    inputs = collect_inputs("digits", made_from, evaluation, ReportConfig())
    assert inputs.probes == {"ladder": []}
    assert inputs.audit == audit


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
