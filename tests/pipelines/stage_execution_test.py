from pipelines.stage_execution import execute_stage
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import RunDirectory


def _execution():
    return Execution(stage="ingest", module="sfm_tf.errors", configs={}, seed=0, inputs={})


def test_says_whether_the_artifact_was_made_or_found(tmp_path, capsys):
    run_directory = RunDirectory(tmp_path)

    def produce(folder, progress):
        progress.update("images", 2, 2)
        (folder / "records").write_text("x")

    made = execute_stage(_execution(), run_directory, produce, False)
    first = capsys.readouterr().err
    found = execute_stage(_execution(), run_directory, produce, False)
    second = capsys.readouterr().err
    assert made == found
    assert "ingest: images 2/2" in first
    assert "ingest: finished in 0.0 s" in first
    assert second.startswith("ingest: found finished")
