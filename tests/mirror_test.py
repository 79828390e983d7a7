"""The tests mirror the source, file by file."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_test_below_a_folder_is_of_the_module_of_its_name():
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").glob("*/**/*_test.py")]
    modules = [path.with_name(path.name.replace("_test.py", ".py")) for path in tests]
    assert tests
    assert [module for module in modules if not (ROOT / module).is_file()] == []
