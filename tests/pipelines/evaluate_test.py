import json

import keras
import numpy as np
import pyarrow.parquet
import pytest

from pipelines.evaluate import answer, evaluate
from pipelines.fit_defences import fit_defences
from pipelines.report import report
from pipelines.validate import validate
from sfm_tf.audit.audited_evaluation import evaluation_settings
from sfm_tf.defences.catalogue import ADVERSARIALLY_TRAINED, DEFENCES
from sfm_tf.errors import SfmError
from sfm_tf.report.statements import THREAT_MODEL_NAMES
from tests.pipelines.tiny_digits import digits


def test_the_answer_is_a_sentence_the_accuracies_and_the_audit(evaluation):
    text = answer(evaluation)
    metrics = json.loads((evaluation.folder / "metrics.json").read_text())
    (clean,) = (entry for entry in metrics["clean"] if entry["defence"] == metrics["subject"])
    is_blessed = (evaluation.folder / "BLESSED").exists()
    assert text.startswith(
        f"The model is {'blessed' if is_blessed else 'not blessed'}: it is right"
    )
    assert f"{clean['accuracy']:.1%} of {clean['examples']} images" in text.splitlines()[0]
    for words in (
        "Thresholds",
        "Accuracy, black box",
        "Accuracy, white box",
        "clean",
        "FGSM 16/255",
        "Audit: ",
    ):
        assert words in text
    audit = json.loads((evaluation.folder / "audit.json").read_text())
    for finding in audit["findings"]:
        assert (finding["status"] in ("fail", "warn")) == (f'check "{finding["title"]}": ' in text)
    assert text.endswith(f"Results: {evaluation.folder}")


def test_the_answer_has_a_table_for_each_threat_model_that_was_run(evaluation):
    run = evaluation_settings(evaluation).threat_models
    text = answer(evaluation)
    assert [f"\nAccuracy, {title}\n" in text for title in THREAT_MODEL_NAMES.values()] == [
        name in run for name in THREAT_MODEL_NAMES
    ]


def test_has_a_row_for_every_image_defence_threat_model_and_attack(new_run):
    artifact = evaluate(new_run("train"), digits(attacks=("fgsm", "pgd")), False)
    rows = pyarrow.parquet.read_table(artifact.folder / "results.parquet")
    # 2 defences x (clean + 3 threat models x 2 attacks x 1 radius), and 4 adaptive attacks on one,
    # x 12 images.
    assert rows.num_rows == (2 * (1 + 3 * 2 * 1) + 4) * 12
    metrics = json.loads((artifact.folder / "metrics.json").read_text())
    assert {entry["examples"] for entry in metrics["under_attack"]} == {12}
    # Untrained models guess, so they cannot be blessed.
    assert (artifact.folder / "NOT_BLESSED").read_text().startswith("Clean accuracy")
    assert not (artifact.folder / "BLESSED").exists()


def test_every_compared_defence_is_a_row_beside_the_others(new_run, capsys):
    run_directory = new_run("train")
    validate(run_directory, digits(), False)
    settings = digits(defences=("all",), num_examples=4, threat_models=("gray_box",))
    fit_defences(run_directory, settings, False)
    folder = evaluate(run_directory, settings, False).folder
    trainer = f"`python -m pipelines.train {run_directory.flag} --adversarial_training=trades`"
    assert trainer in capsys.readouterr().err
    metrics = json.loads((folder / "metrics.json").read_text())
    # Nobody trained on adversarial images here.
    names = [name for name in DEFENCES if name not in ADVERSARIALLY_TRAINED]
    assert [entry["defence"] for entry in metrics["clean"]] == names
    assert {entry["defence"] for entry in metrics["under_attack"]} == set(names)
    costs = json.loads((folder / "costs.json").read_text())
    assert [entry["defence"] for entry in costs] == names
    assert all(entry["seconds_per_1000_images"] > 0 for entry in costs)


def _own_model(path, activation=None):
    # As far from 0 as the logits of a trained model.
    start = keras.initializers.RandomNormal(stddev=3.0 if activation else 0.1, seed=0)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation=activation, kernel_initializer=start),
    ]
    keras.Sequential(layers).save(path)
    return str(path)


def test_a_model_of_ones_own_needs_no_training(new_run, tmp_path, capsys):
    run_directory = new_run("ingest")
    experiment = digits(model=_own_model(tmp_path / "own.keras"), num_examples=5000)
    artifact = evaluate(run_directory, experiment, False)
    rows = pyarrow.parquet.read_table(artifact.folder / "results.parquet")
    assert set(rows["defence"].to_pylist()) == {"model"}
    assert set(rows["threat_model"].to_pylist()) == {"none", "gray_box", "white_box"}
    said = capsys.readouterr().err
    for words in (
        "--num_examples=5000 is more than the 20 test images there are",
        "undefended, sfm are left out, because --model takes",
        "the threat model black_box is left out, because there is no source model",
        f"`python -m pipelines.train {run_directory.flag}`",
        "the threat model adaptive is left out, because it aims at a mask",
        "evaluate: warning: The model is right on",  # It is not trained.
    ):
        assert words in said
    page = (report(run_directory, experiment, False).folder / "report.md").read_text()
    assert page.startswith("# own on digits\n")
    assert "own model" in page


def test_the_black_box_of_ones_own_model_starts_from_the_trained_source(new_run, tmp_path):
    run_directory = new_run("train")
    experiment = digits(model=_own_model(tmp_path / "own.keras"), threat_models=("black_box",))
    artifact = evaluate(run_directory, experiment, False)
    rows = pyarrow.parquet.read_table(artifact.folder / "results.parquet")
    assert set(rows["defence"].to_pylist()) == {"model"}
    assert set(rows["threat_model"].to_pylist()) == {"none", "black_box"}
    value = json.loads(
        (report(run_directory, experiment, False).folder / "report.json").read_text()
    )
    # What else was trained here is none of its own.
    assert (value["masks"], value["history"]) == (None, {})


def test_a_radius_of_another_unit_is_doubted_before_the_work(new_run, tmp_path, capsys):
    run_directory = new_run("ingest")
    model = _own_model(tmp_path / "own.keras")
    settings = {"model": model, "threat_models": ("white_box",), "epsilons": (0.031,)}
    artifact = evaluate(run_directory, digits(**settings), False)
    shown = capsys.readouterr()
    assert "0.031/255 = 0.00012, below 0.5/255; --epsilons are in 1/255. Did you" in shown.err
    assert "L∞ radii for values from 0 to 1: 0.031/255 = 0.000122" in answer(artifact)


def test_a_model_of_one_class_only_is_named_and_never_blessed(new_run, tmp_path):
    run_directory = new_run("ingest")
    path = tmp_path / "own.keras"
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.set_weights([0.0 * model.weights[0].numpy(), 2.0 * np.eye(10)[3]])
    model.save(path)
    settings = {"model": str(path), "threat_models": ("white_box",)}
    lenient = {"min_clean_accuracy": 0.0, "min_worst_case_accuracy": 0.0}
    artifact = evaluate(run_directory, digits(**settings, **lenient), False)
    assert (artifact.folder / "NOT_BLESSED").exists()
    assert "It predicts one class only: '3' on all 12 images." in answer(artifact)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"threat_models": ("adaptive", "undefended")}, id="own_model"),
        pytest.param({"threat_models": ("adaptive",), "defences": ("jpeg",)}, id="without_a_mask"),
    ],
)
def test_threat_models_that_have_nothing_to_aim_at_are_not_all_there_is(new_run, tmp_path, changes):
    own = "" if "defences" in changes else _own_model(tmp_path / "own.keras")
    with pytest.raises(SfmError, match=r"None of the threat models adaptive.+add white_box"):
        evaluate(new_run("train"), digits(model=own, **changes), False)


def test_a_source_of_ones_own_starts_the_black_box(new_run, tmp_path):
    run_directory = new_run("ingest")
    experiment = digits(
        model=_own_model(tmp_path / "own.keras"),
        source_model=_own_model(tmp_path / "source.keras"),
        threat_models=("black_box",),
    )
    artifact = evaluate(run_directory, experiment, False)
    rows = pyarrow.parquet.read_table(artifact.folder / "results.parquet")
    assert set(rows["threat_model"].to_pylist()) == {"none", "black_box"}


@pytest.mark.parametrize(
    ("activation", "message"),
    [("softmax", "probabilities; expected logits"), ("sigmoid", "without its last activation")],
)
def test_a_model_that_returns_probabilities_is_refused(new_run, tmp_path, activation, message):
    run_directory = new_run("ingest")
    experiment = digits(model=_own_model(tmp_path / "own.keras", activation))
    with pytest.raises(SfmError, match=message):
        evaluate(run_directory, experiment, False)
    assert not list(run_directory.root.glob("evaluate/*.partial"))


def test_adversarial_images_are_shared_by_evaluations_and_made_anew_by_force(new_run, tmp_path):
    run_directory = new_run("ingest")
    model = _own_model(tmp_path / "own.keras")
    settings = {"model": model, "threat_models": ("white_box",)}
    first = evaluate(run_directory, digits(**settings), False)
    files = {p.name: p.stat().st_ino for p in (first.folder / "adversarial").glob("*.tfrecord")}
    assert len(files) == 1
    second = evaluate(run_directory, digits(**settings, min_clean_accuracy=0.9), False)
    assert second.folder != first.folder
    for name, inode in files.items():
        assert (second.folder / "adversarial" / name).stat().st_ino == inode
    forced = evaluate(run_directory, digits(**settings), True)
    for name, inode in files.items():
        assert (forced.folder / "adversarial" / name).stat().st_ino != inode
