import pytest

from pipelines.model_artifacts import model_folders, model_inputs
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE
from sfm_tf.errors import SfmError
from tests.pipelines.tiny_digits import digits


def _leave(run_directory, stage, inputs=None):
    execution = Execution(
        stage=stage, modules=["sfm_tf.errors"], configs={}, seed=0, inputs=inputs or {}
    )
    return execute(execution, run_directory, lambda folder: None).artifact


@pytest.fixture(name="run_directory")
def _run_directory(new_run):
    return new_run("train")


def test_an_evaluation_reads_what_its_defences_need_and_no_more(run_directory):
    quilting = _leave(run_directory, "fit_quilting")
    _leave(run_directory, "fit_pixel_defend")
    inputs = model_inputs(run_directory, digits(defences=("sfm", "quilting+median_2")))
    assert set(inputs) == {"ingest", "train", "fit_quilting"}
    folders = model_folders(inputs)
    assert folders.fits == {"quilting": quilting.folder}
    assert folders.trained == run_directory.latest("train").folder
    assert folders.adversarial is None


def test_all_takes_adversarially_trained_models_where_there_are_some(run_directory):
    for stage in ("fit_quilting", "fit_pixel_defend"):
        _leave(run_directory, stage)
    settings = digits(defences=("all",))
    assert ADVERSARIAL_STAGE not in model_inputs(run_directory, settings)
    trained = _leave(run_directory, ADVERSARIAL_STAGE)
    assert model_folders(model_inputs(run_directory, settings)).adversarial == trained.folder


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("pixel_defend", "pipelines.fit_defences --defences=pixel_defend"),
        ("adversarial_training", "pipelines.train --adversarial_training=trades"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_makes_it(run_directory, name, program):
    with pytest.raises(SfmError, match=program):
        model_inputs(run_directory, digits(defences=(name,)))


def test_what_learnt_from_another_ingest_is_refused(run_directory):
    other = _leave(run_directory, "fit_quilting", {"ingest": _leave(run_directory, "ingest")})
    with pytest.raises(SfmError, match="was trained on other records"):
        model_inputs(run_directory, digits(defences=("quilting",)))
    same = {"ingest": run_directory.input_of(run_directory.latest("train"), "ingest")}
    made = _leave(run_directory, "fit_quilting", same)
    assert made.folder != other.folder
    inputs = model_inputs(run_directory, digits(defences=("quilting",)))
    assert inputs["fit_quilting"].folder == made.folder


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        pytest.param({}, {"ingest", "train"}, id="black_box"),
        pytest.param({"threat_models": ("white_box",)}, {"ingest"}, id="white_box"),
        pytest.param({"source_model": "source.keras"}, {"ingest"}, id="own_source"),
    ],
)
def test_trained_models_serve_a_model_of_ones_own_as_source_alone(run_directory, changes, stages):
    inputs = model_inputs(run_directory, digits(model="own.keras", **changes))
    assert set(inputs) == stages


def test_a_model_of_ones_own_needs_no_trained_one(new_run):
    inputs = model_inputs(new_run("ingest"), digits(model="own.keras"))
    assert set(inputs) == {"ingest"}
    assert model_folders(inputs).trained is None


def test_a_source_that_was_trained_on_other_records_is_none(run_directory):
    _leave(run_directory, "ingest")
    assert set(model_inputs(run_directory, digits(model="own.keras"))) == {"ingest"}
