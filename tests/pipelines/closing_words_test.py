import json

import pytest

from pipelines import closing_words
from sfm_tf import testing
from sfm_tf.artifacts.execution import Execution, execute
from sfm_tf.artifacts.run_directory import RunDirectory


def test_the_table_has_every_threat_model_and_the_measured_figure(tmp_path, capsys):
    evaluation = testing.make_evaluation(RunDirectory(tmp_path))
    closing_words.say("evaluate", evaluation)
    text = capsys.readouterr().out
    for words in ("black box", "gray box", "white box", "clean", "FGSM 16/255"):
        assert words in text
    metrics = json.loads((evaluation.folder / "metrics.json").read_text())
    assert f"{metrics['clean'][0]['accuracy']:.1%}" in text


def test_the_model_comes_with_the_command_that_serves_it(tmp_path, capsys):
    version = tmp_path / "models" / "digits" / "3"
    execution = Execution(stage="export", module="sfm_tf.errors", configs={}, seed=0, inputs={})

    def produce(folder):
        (folder / "pushed.json").write_text(json.dumps({"folder": str(version)}))

    closing_words.say("export", execute(execution, RunDirectory(tmp_path), produce).artifact)
    text = capsys.readouterr().out
    assert f"SavedModel: {version}" in text
    assert f"-v '{version.parent}:/models/digits' -e MODEL_NAME=digits" in text


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
