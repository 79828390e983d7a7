import json
import os
import pathlib
import subprocess
import sys

import pytest

from pipelines import report as program
from pipelines.report import compare, report
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


@pytest.fixture(name="workdirs", scope="module")
def _workdirs(tmp_path_factory):
    """Returns two working directories with the same evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = RunDirectory(folder / "first"), folder / "second"
    first.claim("digits")
    testing.make_evaluation(first)
    second.mkdir()
    for stage in ("ingest", "train", "evaluate"):
        (second / stage).symlink_to(first.root / stage)
    return [str(first.root), str(second)]


def _run(folder, *arguments):
    root = pathlib.Path(program.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "pipelines.report", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compares_working_directories_without_making_one(workdirs, tmp_path):
    result = _run(tmp_path, "--compare", *workdirs, "--format=json")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "comparison"
    names = {path.name for path in folder.iterdir()}
    assert names == {"compare.html", "compare.md", "compare.json"}
    assert result.stdout == (folder / "compare.json").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]


def test_json_of_the_report_is_printed_for_machines(workdirs, tmp_path):
    result = _run(tmp_path, f"--workdir={workdirs[0]}", "--format=json")
    assert result.returncode == 0, result.stderr
    (path,) = (pathlib.Path(workdirs[0]) / "report").glob("*/report.json")
    assert result.stdout == path.read_text("utf-8")


def test_a_comparison_goes_where_it_is_told_to(workdirs, tmp_path):
    value = compare(workdirs, tmp_path / "new" / "comparison")
    assert [run["name"] for run in value["runs"]] == ["first", "second"]
    assert {each["difference"] for pair in value["pairs"] for each in pair["differences"]} == {0.0}
    assert (tmp_path / "new" / "comparison" / "compare.html").exists()


def test_one_run_alone_is_not_compared(workdirs, tmp_path):
    with pytest.raises(SfmError, match="give at least two different working directories"):
        compare(workdirs[:1], tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


def test_needs_an_evaluation(tmp_path):
    with pytest.raises(SfmError, match="Stage evaluate has not finished"):
        report(RunDirectory(tmp_path), experiments.preset("digits"), False)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
