import html
import json

import numpy as np
import pytest

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation import results
from sfm_tf.evaluation.blessing import decide
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.report.comparison import ComparedRun
from sfm_tf.report.comparison_document import build_comparison

HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&"
COUNT = 4


def rows(threat_model: str, attack: str, epsilon: float, correct: int):
    values = {
        "label": 0,
        "defence": "sfm",
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": 0,
        "prediction": np.where(np.arange(COUNT) < correct, 0, 1),
        "linf": 0.03,
        "l2": 0.1,
        "iterations": 3,
        "loss": 0.5,
        "zero_gradient": False,
    }
    return results.results_rows(COUNT, values)


def run(name: str, correct: int) -> ComparedRun:
    parts = [rows("none", "clean", 0.0, COUNT), rows("white_box", "pgd", 8.0, correct)]
    table = results.join_results(parts)
    metrics = summarise(table)
    manifest = Manifest(
        stage="evaluate",
        fingerprint="cd" * 32,
        config={"evaluation": {"iterations": correct}},
        seed=0,
        inputs={},
        content="0a",
        code_version="0" * 64,
        package_versions={},
        started="2025-01-02T03:04:05+00:00",
        wall_seconds=1.0,
    )
    return ComparedRun(
        name=name,
        workdir=f"runs/{name}",
        experiment="digits",
        images_digest="ab" * 32,
        metrics=metrics,
        results=table,
        blessing=decide(metrics, EvaluationConfig()),
        costs=(),
        manifests=[manifest],
    )


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    build_comparison([run(HOSTILE, 1), run("two", 3)], folder)
    return folder


def test_json_holds_runs_differences_and_settings(folder):
    value = json.loads((folder / "compare.json").read_text("utf-8"))
    assert value["schema_version"] == 1
    assert value["images"] == {"count": COUNT, "sha256": "ab" * 32}
    assert [each["name"] for each in value["runs"]] == [HOSTILE, "two"]
    assert value["settings"] == [{"setting": "evaluate: evaluation.iterations", "values": [1, 3]}]
    (pair,) = value["pairs"]
    (attack,) = (each for each in pair["differences"] if each["attack"] == "pgd")
    assert attack == {
        "threat_model": "white_box",
        "attack": "pgd",
        "epsilon": 8.0,
        "examples": COUNT,
        "first_accuracy": 0.25,
        "second_accuracy": 0.75,
        "difference": 0.5,
        "only_first_right": 0,
        "only_second_right": 2,
        "p_value": 0.5,
        "holm_p_value": None,
    }


def test_pages_show_names_but_no_mark_up_of_them(folder):
    for name in ("compare.html", "compare.md"):
        text = (folder / name).read_text("utf-8")
        assert "<script" not in text
        assert HOSTILE in html.unescape(text)
        assert "+50.0" in text
    assert "[c](d)" not in (folder / "compare.md").read_text("utf-8")


def test_the_returned_value_is_the_one_that_is_written(folder, tmp_path):
    value = build_comparison([run(HOSTILE, 1), run("two", 3)], tmp_path)
    assert value == json.loads((folder / "compare.json").read_text("utf-8"))
    for name in ("compare.json", "compare.md", "compare.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
