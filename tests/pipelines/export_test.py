import json
import os
import pathlib
import shlex
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import run, serve, versions
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.report import report
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.serving import pushing, verification
from sfm_tf.serving.push_record import read_push
from sfm_tf.training.model_files import load_defended_model
from tests.pipelines.tiny_digits import digits


def pushed_folder(run_directory):
    record = read_push(run_directory.latest("export").folder, run_directory.root)
    return pathlib.Path(record.folder)


@pytest.fixture(scope="module")
def first_export(tmp_path_factory):
    """Where the first export is kept, and how it was verified."""
    return tmp_path_factory.mktemp("first") / "saved_model", []


@pytest.fixture
def one_export(first_export, monkeypatch):
    """Only the first push traces the model and starts a fresh process, which take their seconds."""
    verify, write = pushing.verify_saved_model, pushing.export_saved_model
    first, found = first_export

    def verify_once(*arguments, **options):
        if not found:
            found.append(verify(*arguments, **options))
        return found[0]

    def write_once(defended, class_names, folder, precision):
        if found:
            shutil.copytree(first, folder)
        else:
            write(defended, class_names, folder, precision)
            shutil.copytree(folder, first)

    monkeypatch.setattr(verification, "SECONDS_PER_BATCH_SIZE", 0.1)
    monkeypatch.setattr(pushing, "verify_saved_model", verify_once)
    monkeypatch.setattr(pushing, "export_saved_model", write_once)


@pytest.mark.usefixtures("one_export")
def test_pushes_the_evaluated_model_once_and_leaves_what_was_rolled_back(new_run, tmp_path, capsys):
    run_directory = new_run("evaluate")
    evaluation = run_directory.latest("evaluate")
    experiment = experiments.override(
        experiments.preset("digits"),
        {"serving_dir": str(tmp_path / "models"), "model_name": "digits"},
    )
    artifact = export(run_directory, experiment, False)
    assert pushed_folder(run_directory) == tmp_path / "models" / "digits" / "1"
    assert export(run_directory, experiment, False) == artifact

    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    served = tf.saved_model.load(str(pushed_folder(run_directory))).signatures["serving_default"]
    models = run_directory.input_of(evaluation, "train")
    expected = load_defended_model(models.folder)(tf.constant(images))
    answers = served(images=tf.constant(images))
    np.testing.assert_allclose(answers["logits"], expected, atol=1e-5)

    verified = json.loads((artifact.folder / "pushed.json").read_text())["verification"]
    assert verified["examples"] == 12
    labels = {name: v["disagreeing_labels"] for name, v in verified["signatures"].items()}
    assert labels == {"serving_default": 0, "predict_bytes": 0, "explain": 0}
    batches = verified["performance"]["batches"]
    assert [batch["batch_size"] for batch in batches] == [1, 8, 64]
    lines = [line for line in capsys.readouterr().err.splitlines() if "peak memory" in line]
    assert len(lines) == 2  # Once measured, once found finished.
    for batch in batches:
        median = f"batch {batch['batch_size']}: median {1000 * batch['median_seconds']:,.1f} ms"
        assert all(median in line for line in lines)

    extra = pushed_folder(run_directory) / "assets.extra"
    card = (extra / "MODEL_CARD.md").read_text()
    assert "--experiment=digits --seed=0" in card
    assert evaluation.manifest.fingerprint in card
    manifest = json.loads((extra / "manifest.json").read_text())
    assert manifest["artifact"]["fingerprint"] == evaluation.manifest.fingerprint
    assert manifest["blessed"] is True

    models = tmp_path / "models" / "digits"

    def export_again(force=False, **settings):
        capsys.readouterr()
        export(run_directory, experiments.override(experiment, settings), force)
        return capsys.readouterr().err

    # Another model's version is what a server loads, then a copy of this one, then another again.
    shutil.copytree(models / "1", models / "2")
    command = f"python -m pipelines.export --workdir={run_directory.root} --serving_dir="
    assert "loads version 2, which is newer. That is left as it is; to push " in export_again()
    versions.manage(str(models), None, 1)
    assert "That is left as it is" not in export_again(keep_versions=1)
    versions.manage(str(models), 1, 2)
    said = export_again()
    assert "was pushed before, and a server loads version 4, which is a copy of version 2." in said
    assert command in said
    assert said.count("--force") == 1
    assert sorted(path.name for path in models.glob("[0-9]*")) == ["4"]
    export_again(force=True)
    assert pushed_folder(run_directory) == models / "5"

    # Where nothing is left to load, nobody's choice is overridden.
    for version in (4, 5):
        shutil.rmtree(models / str(version))
    assert f"no version is left in {models}; pushing again" in export_again()
    assert pushed_folder(run_directory) == models / "6"


@pytest.mark.usefixtures("one_export")
def test_a_copy_of_a_working_directory_works_with_its_own_models(
    new_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    original = new_run("evaluate")
    relative = RunDirectory(pathlib.Path(os.path.relpath(original.root)))
    experiment = experiments.preset("digits")
    export(relative, experiment, False)
    export(relative, experiment, True)
    shutil.copytree(original.root, tmp_path / "else where" / "copy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    workdir = "../else where/copy"
    copied = versions.find_folder(workdir, None, None, changes=True)
    assert "Deleted: 1." in versions.manage(copied, 1, None)
    served = original.root / "serving" / "sfm_defended"
    assert [path.name for path in sorted(served.glob("[0-9]*"))] == ["1", "2"]
    shutil.rmtree(original.root)

    copy = RunDirectory(pathlib.Path(workdir))
    ((name, folder),) = serve.find_models(workdir, []).items()
    assert (name, folder) == ("sfm_defended", (copy.root / "serving" / "sfm_defended").resolve())
    capsys.readouterr()
    export(copy, experiment, False)
    report(copy, experiment, False)
    assert "export: found finished" in capsys.readouterr().err
    assert [path.name for path in folder.glob("[0-9]*")] == ["2"]
    words = shlex.split(run.serving_command(copy, copy.latest("export")).partition("it: ")[2])
    assert f"{folder}:/models/sfm_defended" in words


def test_refuses_a_model_that_was_not_blessed(new_run):
    run_directory = new_run("evaluate")
    folder = run_directory.latest("evaluate").folder
    (folder / "BLESSED").unlink()
    (folder / "NOT_BLESSED").write_text("Clean accuracy is too low.\n")
    with pytest.raises(SfmError, match="NOT_BLESSED: Clean accuracy .* --allow_not_blessed"):
        export(run_directory, experiments.preset("digits"), False)
    assert not (run_directory.root / "serving").exists()


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_the_very_model_of_ones_own_that_was_evaluated_is_exported(
    new_run, tmp_path, monkeypatch, kind
):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model, path = keras.Sequential(layers), tmp_path / "cnn"
    if kind == "keras":
        path = path.with_suffix(".keras")
        model.save(path)
    else:
        model.export(path, verbose=False)
    run_directory = new_run("ingest")
    settings = {"model": str(path), "threat_models": ("white_box",), "min_clean_accuracy": 0.0}
    settings |= {"min_worst_case_accuracy": 0.0, "required_audit": "not_credible"}
    evaluate(run_directory, digits(**settings), False)
    # What is at the path by now, if anything, is not what was evaluated.
    path.rename(tmp_path / "gone")
    moved = run_directory.root.rename(tmp_path / "moved")
    exported = []

    def push(evaluated, config, folder):
        del config
        pushing.export_saved_model(evaluated.defended, evaluated.class_names, folder / "model")
        exported.append((evaluated, tf.saved_model.load(str(folder / "model"))))
        raise SfmError("Seen enough.")

    monkeypatch.setattr(pushing, "push_blessed", push)
    with pytest.raises(SfmError, match="Seen enough"):
        export(RunDirectory(moved), digits(), False)
    ((evaluated, served),) = exported
    answers = served.signatures["serving_default"](images=tf.constant(evaluated.images))
    np.testing.assert_allclose(answers["logits"], model(evaluated.images), atol=1e-5)
    assert evaluated.model_card.startswith("# Model card: cnn on digits")
    assert "--until=validate && python -m pipelines.evaluate" in evaluated.model_card
    assert "--model=MODEL" in evaluated.model_card


def test_a_model_of_ones_own_without_its_copy_is_not_exported(new_run, tmp_path):
    path = tmp_path / "cnn.keras"
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(layers).save(path)
    run_directory = new_run("ingest")
    experiment = digits(model=str(path), threat_models=("white_box",))
    shutil.rmtree(evaluate(run_directory, experiment, False).folder / "own_model")
    with pytest.raises(SfmError, match=r"no copy of the evaluated model .*cnn\.keras.+--force"):
        export(run_directory, experiment, False)
