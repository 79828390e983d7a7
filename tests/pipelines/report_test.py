import json

import pytest

from pipelines.report import report
from sfm_tf import experiments, testing
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError


def test_reports_on_the_latest_evaluation(tmp_path):
    run_directory = RunDirectory(tmp_path)
    evaluation = testing.make_evaluation(run_directory)
    artifact = report(run_directory, experiments.preset("digits"), False)
    names = {path.name for path in artifact.folder.iterdir()}
    assert {"report.html", "report.md", "report.json", "figures", "manifest.json"} <= names
    value = json.loads((artifact.folder / "report.json").read_text())
    assert value["metrics"] == json.loads((evaluation.folder / "metrics.json").read_text())
    assert artifact.manifest.inputs["evaluate"] == evaluation.manifest.fingerprint


def test_needs_an_evaluation(tmp_path):
    with pytest.raises(SfmError, match="Stage evaluate has not finished"):
        report(RunDirectory(tmp_path), experiments.preset("digits"), False)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
