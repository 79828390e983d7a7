from sfm_tf import testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.training.model_files import load_defended_model, load_source_model


def test_leaves_what_the_first_stages_would(tmp_path):
    run_directory = RunDirectory(tmp_path)
    evaluation = testing.make_evaluation(run_directory)
    assert evaluation == run_directory.latest("evaluate")
    models = run_directory.input_of(evaluation, "train")
    assert run_directory.input_of(models, "ingest") == run_directory.latest("ingest")
    assert load_defended_model(models.folder).masker.output_shape == (None, 8, 8, 1)
    assert load_source_model(models.folder).output_shape == (None, 10)
    assert (evaluation.folder / "BLESSED").is_file()


def test_made_up_figures_are_those_that_are_asked_for():
    rows = testing.made_up_rows("white_box", "pgd", 8.0, 3, 4)
    manifest = testing.made_up_manifest("evaluate", {"evaluation": {"norm": "inf"}}, seed=7)
    run = testing.made_up_run("one", [manifest], rows, count=4)
    assert (run.image_count, run.subject, run.blessing.blessed) == (4, "sfm", True)
    (attacked,) = run.metrics["under_attack"]
    assert (attacked["correct"], attacked["examples"]) == (3, 4)
    assert (run.manifests[0].seed, run.manifests[0].config) == (7, {"evaluation": {"norm": "inf"}})
    broken = testing.made_up_rows("white_box", "pgd", 8.0, 1, 4)
    assert not testing.made_up_run("two", [manifest], broken, count=4).blessing.blessed
    assert testing.made_up_inputs().metrics["clean"][0]["accuracy"] == 0.5
