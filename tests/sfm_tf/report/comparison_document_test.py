import html
import json

import pytest

from sfm_tf.report.comparison import ComparedRun
from sfm_tf.report.comparison_document import build_comparison
from tests import made_up

HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&"
COUNT = 4


def run(name: str, correct: int, seed: int = 0, iterations: int | None = None) -> ComparedRun:
    config = {"evaluation": {"iterations": correct if iterations is None else iterations}}
    attacked = made_up.rows("white_box", "pgd", 8.0, correct, COUNT)
    manifests = [made_up.manifest("evaluate", config, seed)]
    return made_up.run(name, manifests, attacked, count=COUNT)


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
    assert value["spreads"] == []
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


def test_runs_of_several_seeds_have_their_spread_on_every_page(tmp_path):
    value = build_comparison([run("a", 1, 0, 9), run("b", 2, 1, 9), run("c", 3, 2, 9)], tmp_path)
    (group,) = value["spreads"]
    assert (group["runs"], group["stages"]) == (["a", "b", "c"], ["evaluate"])
    (row,) = (each for each in group["rows"] if each["attack"] == "pgd")
    # 25 %, 50 % and 75 %: squares of 25 points twice, over two.
    assert row == {
        "threat_model": "white_box",
        "attack": "pgd",
        "epsilon": 8.0,
        "mean": 0.5,
        "standard_deviation": 0.25,
        "minimum": 0.25,
        "maximum": 0.75,
    }
    assert value["summary"][-1].startswith("Over 3 seeds (a, b, c)")
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / name).read_text("utf-8")
        assert text.index("Spread over the seeds of a, b, c") < text.index("a and b")
        assert value["summary"][-1] in text


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
