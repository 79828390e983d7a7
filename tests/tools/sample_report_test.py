"""Golden tests: the documents of a report and of a comparison are what they were.

    UPDATE_GOLDENS=1 python -m pytest tests/tools/sample_report_test.py

writes the files in tests/testdata again, after a change that is meant; read the difference before
it is committed. So does docs/glossary.md. docs/report.schema.json is written by hand.
"""

import json
import os
import pathlib

import jsonschema
import pytest

from sfm_tf.report.glossary import glossary_document
from tools import sample_report

ROOT = pathlib.Path(sample_report.__file__).parents[1]
GOLDENS = ROOT / "tests" / "testdata"
SCHEMA = ROOT / "docs" / "report.schema.json"
IS_UPDATE = os.environ.get("UPDATE_GOLDENS") == "1"


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "made"
    sample_report.main([str(folder)])
    return folder


def check(name: str, text: str) -> None:
    """Compares a text with a golden file, or writes the file where that is asked for."""
    path = GOLDENS / name
    if IS_UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; see the top of this test."


def tables(text: str) -> str:
    """Returns the headings, and the tables with their titles, of a Markdown document."""
    blocks = text.split("\n\n")
    kept = [
        block
        for place, block in enumerate(blocks)
        if block.lstrip().startswith(("#", "|"))
        or (place + 1 < len(blocks) and blocks[place + 1].startswith("|"))
    ]
    return "\n\n".join(block.strip("\n") for block in kept) + "\n"


def shape(value, path: str = "$") -> dict[str, set[str]]:
    """Returns the kinds of value at each path; `[]` stands for any place in a list."""
    found = {path: {type(value).__name__}}
    children = []
    if isinstance(value, dict):
        children = [shape(each, f"{path}.{key}") for key, each in value.items()]
    elif isinstance(value, list):
        children = [shape(each, f"{path}[]") for each in value]
    for child in children:
        for inner, kinds in child.items():
            found.setdefault(inner, set()).update(kinds)
    return found


def shape_text(path: pathlib.Path) -> str:
    found = shape(json.loads(path.read_text("utf-8")))
    return "".join(f"{path}: {' or '.join(sorted(found[path]))}\n" for path in sorted(found))


@pytest.mark.parametrize("document", ["report", "compare"])
def test_the_tables_are_what_they_were(folder, document):
    check(f"{document}_tables.md", tables((folder / f"{document}.md").read_text("utf-8")))


@pytest.mark.parametrize("document", ["report", "compare"])
def test_the_json_has_the_keys_that_it_had(folder, document):
    check(f"{document}_shape.txt", shape_text(folder / f"{document}.json"))


def test_the_glossary_is_the_one_of_the_report():
    path = ROOT / "docs" / "glossary.md"
    if IS_UPDATE:
        path.write_text(glossary_document(), encoding="utf-8")
    assert path.read_text("utf-8") == glossary_document()


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def report_value(folder: pathlib.Path) -> dict:
    return json.loads((folder / "report.json").read_text("utf-8"))


def test_the_json_keeps_its_schema(folder):
    value = report_value(folder)
    assert [error.message for error in validator().iter_errors(value)] == []
    # A key that the schema does not know is one that nobody documented.
    assert value.keys() == json.loads(SCHEMA.read_text("utf-8"))["properties"].keys()


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        (("schema_version",), 2),
        (("verdict", "blessed"), "yes"),
        (("metrics", "clean", 0, "accuracy"), 1.5),
        (("metrics", "worst_case", 0, "epsilon"), "8"),
        (("audit", "findings", 0, "status"), "maybe"),
        (("stages", 0, "fingerprint"), None),
    ],
)
def test_the_schema_refuses_what_a_reader_could_not_use(folder, keys, wrong):
    value = report_value(folder)
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = wrong
    assert not validator().is_valid(value)


def test_the_schema_misses_every_key_that_is_gone(folder):
    value = report_value(folder)
    assert set(json.loads(SCHEMA.read_text("utf-8"))["required"]) == value.keys()
    del value["metrics"]
    assert not validator().is_valid(value)
