"""The tests mirror the source, file by file."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_module_has_a_test_of_its_name_and_the_reverse():
    sources = [
        path for name in ("pipelines", "sfm_tf", "tools") for path in (ROOT / name).rglob("*.py")
    ]
    modules = {str(path.relative_to(ROOT).with_suffix("")) for path in sources}
    modules = {name for name in modules if not name.endswith(("/__init__", "/settings"))}
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir()]
    tests = {
        str(path.relative_to(ROOT / "tests"))[: -len("_test.py")]
        for folder in folders
        for path in folder.rglob("*_test.py")
    }
    assert {name for name in tests if not name.endswith("/settings")} == modules
