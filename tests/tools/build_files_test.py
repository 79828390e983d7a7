"""The generated BUILD files and the rules, on small trees written by hand."""

import pathlib

import pytest

from tools import build_files

RECORDS_BUILD = """\
# Written by `python -m tools.build_files` from the imports; edit those instead.

package(
    default_visibility = [
        "//pipelines:__subpackages__",
        "//sfm_tf:__subpackages__",
        "//tests:__subpackages__",
        "//tools:__subpackages__",
    ],
)

py_library(
    name = "__init__",
    srcs = ["__init__.py"],
    data = ["templates/card.md.j2"],
    deps = ["//sfm_tf:__init__"],
)

py_library(
    name = "reading",
    srcs = ["reading.py"],
    deps = [
        ":__init__",
        ":schema",
        "//sfm_tf:errors",
    ],
)

py_library(
    name = "schema",
    srcs = ["schema.py"],
    deps = [":__init__"],
)
"""
PIPELINES_BUILD = """\
# Written by `python -m tools.build_files` from the imports; edit those instead.

package(
    default_visibility = [
        "//pipelines:__subpackages__",
        "//tests/pipelines:__subpackages__",
    ],
)

py_binary(
    name = "train",
    srcs = ["train.py"],
    deps = ["//sfm_tf/records:reading"],
)
"""
TEST_BUILD = """\
# Written by `python -m tools.build_files` from the imports; edit those instead.

package(
    default_visibility = ["//tests:__subpackages__"],
)

py_test(
    name = "train_test",
    srcs = ["train_test.py"],
    deps = [
        "//pipelines:train",
        "//sfm_tf/records:schema",
        "//tests:conftest",
    ],
)
"""
TREE = {
    "pipelines/train.py": "from sfm_tf.records import reading\n\n"
    'if __name__ == "__main__":\n    reading.read()\n',
    "sfm_tf/__init__.py": "",
    "sfm_tf/errors.py": "",
    "sfm_tf/records/__init__.py": "",
    "sfm_tf/records/templates/card.md.j2": "",
    "sfm_tf/records/tfrecords.py": "import json\n\n"
    "from sfm_tf.records.schema import Schema\n\n\n"
    "def read():\n    import sfm_tf.errors\n",
    "sfm_tf/records/schema.py": "class Schema:\n    pass\n",
    "tests/conftest.py": "",
    "tests/pipelines/train_test.py": "from sfm_tf.records.schema import Schema\n",
    "tests/sfm_tf/errors_test.py": "",
    "tests/sfm_tf/records/tfrecords_test.py": "",
    "tests/sfm_tf/records/schema_test.py": "",
}


def write(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("sfm_tf/records", RECORDS_BUILD),
        ("pipelines", PIPELINES_BUILD),
        ("tests/pipelines", TEST_BUILD),
    ],
)
def test_dependencies_are_the_imports(tmp_path, folder, expected):
    build_files.main([], write(tmp_path, TREE))

    assert (tmp_path / folder / "BUILD").read_text(encoding="utf-8") == expected


def test_data_is_not_claimed_by_an_outer_package(tmp_path):
    build_files.main([], write(tmp_path, TREE))

    assert "card.md.j2" not in (tmp_path / "sfm_tf/BUILD").read_text(encoding="utf-8")


def test_only_tests_may_depend_on_testing(tmp_path):
    added = {"sfm_tf/testing.py": "", "tests/sfm_tf/testing_test.py": ""}
    build_files.main([], write(tmp_path, TREE | added))

    text = (tmp_path / "sfm_tf/BUILD").read_text(encoding="utf-8")
    assert text.count("testonly = True") == 1
    assert 'name = "testing",\n    testonly = True,' in text


def test_conftest_brings_the_settings_of_pytest(tmp_path):
    build_files.main([], write(tmp_path, TREE))

    text = (tmp_path / "tests/BUILD").read_text(encoding="utf-8")
    assert 'data = ["//:pyproject.toml"]' in text


DATA_BUILD = """\
# Written by `python -m tools.build_files` from the imports; edit those instead.

filegroup(
    name = "documents",
    srcs = glob(
        ["*"],
        exclude = ["BUILD"],
    ),
    visibility = ["//tests:__subpackages__"],
)
"""
READER = {
    "docs/report.schema.json": "{}",
    "tests/testdata/report_tables.md": "",
    "tests/tools/sample_report_test.py": "",
    "tools/sample_report.py": "",
}


def test_files_that_a_test_reads_are_its_data(tmp_path):
    build_files.main([], write(tmp_path, TREE | READER))

    text = (tmp_path / "tests/tools/BUILD").read_text(encoding="utf-8")
    labels = '        "//docs:documents",\n        "//tests/testdata:goldens",\n'
    assert f"    data = [\n{labels}    ],\n" in text
    assert (tmp_path / "docs/BUILD").read_text(encoding="utf-8") == DATA_BUILD
    goldens = (tmp_path / "tests/testdata/BUILD").read_text(encoding="utf-8")
    assert goldens == DATA_BUILD.replace("documents", "goldens")
    build_files.main(["--check"], tmp_path)

    write(tmp_path, {"docs/BUILD": "old"})
    with pytest.raises(SystemExit, match="docs/BUILD is stale"):
        build_files.main(["--check"], tmp_path)


def test_data_is_of_targets_that_are_written():
    targets = {f"//{folder}:{name}" for folder, name in build_files.DATA_FOLDERS.items()}
    for path, labels in build_files.TEST_DATA.items():
        assert set(labels) <= {"//:pyproject.toml"} | targets, path


def test_written_files_pass_the_check(tmp_path):
    build_files.main([], write(tmp_path, TREE))

    build_files.main(["--check"], tmp_path)


def test_check_names_the_stale_file_and_leaves_it(tmp_path):
    build_files.main([], write(tmp_path, TREE))
    write(tmp_path, {"sfm_tf/records/schema.py": "import sfm_tf.errors\n"})

    with pytest.raises(SystemExit) as stopped:
        build_files.main(["--check"], tmp_path)

    path = tmp_path / "sfm_tf/records/BUILD"
    assert stopped.value.code == f"{path} is stale; run `python -m tools.build_files`."
    assert path.read_text(encoding="utf-8") == RECORDS_BUILD


def test_build_file_of_a_removed_folder_goes(tmp_path):
    write(tmp_path, TREE | {"sfm_tf/models/BUILD": "old"})

    with pytest.raises(SystemExit, match="models/BUILD is stale"):
        build_files.main(["--check"], tmp_path)
    build_files.main([], tmp_path)

    assert not (tmp_path / "sfm_tf/models/BUILD").exists()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"sfm_tf/errors.py": "from sfm_tf.records.schema import Schema\n"},
            "sfm_tf/errors.py imports sfm_tf/records/schema.py, but the layer 'errors' is below "
            "'records'.",
        ),
        (
            {"sfm_tf/records/schema.py": "def late():\n    import pipelines.train\n"},
            "sfm_tf/records/schema.py imports pipelines/train.py, but the layer 'records' is below "
            "'pipelines'.",
        ),
        (
            {
                "sfm_tf/testing.py": "A, B = 1, 2\n",
                "tests/sfm_tf/testing_test.py": "",
                "pipelines/train.py": "from sfm_tf.testing import A, B\n",
            },
            "pipelines/train.py imports sfm_tf/testing.py, but the layer 'pipelines' is below "
            "'testing'.",
        ),
        (
            {"sfm_tf/records/schema.py": "from sfm_tf.absent import thing\n"},
            "sfm_tf/records/schema.py imports sfm_tf.absent.thing, which no file provides; write "
            "its full path.",
        ),
        (
            {"pipelines/report.py": ""},
            "pipelines/report.py has no test; expected tests/pipelines/report_test.py.",
        ),
        (
            {"tests/sfm_tf/records/old_test.py": ""},
            "tests/sfm_tf/records/old_test.py mirrors no module; expected sfm_tf/records/old.py.",
        ),
        (
            {"tests/sfm_tf/records/schema_test.py": "\n\ndef test_it():\n    pass\n"},
            "tests/sfm_tf/records/schema_test.py runs no test when started; end it with 'raise "
            "SystemExit(pytest.main([__file__]))' as main.",
        ),
        (
            {
                "sfm_tf/misc.py": "from sfm_tf.records.schema import Schema\n",
                "tests/sfm_tf/misc_test.py": "",
            },
            "sfm_tf/misc.py is in no layer; add 'misc' to LAYERS.",
        ),
    ],
)
def test_broken_rule_is_reported_in_one_line(tmp_path, files, problem):
    assert build_files.problems(write(tmp_path, TREE)) == []

    assert build_files.problems(write(tmp_path, files)) == [problem]


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_broken_rule_fails_both_commands(tmp_path, arguments):
    write(tmp_path, TREE)
    build_files.main([], tmp_path)
    write(tmp_path, {"sfm_tf/errors.py": "import pipelines.train\n"})

    with pytest.raises(SystemExit, match="'errors' is below 'pipelines'"):
        build_files.main(arguments, tmp_path)
