"""One test target for all tests of a package."""

def package_test(deps, data = []):
    """Defines the target `test`, which runs pytest on this folder and those below it.

    Args:
        deps: Libraries that the tests import.
        data: Files that they read.
    """
    native.py_test(
        name = "test",
        srcs = native.glob(["**/*.py"]) + ["//tests:run_package.py"],
        args = [native.package_name()],
        data = data,
        main = "//tests:run_package.py",
        deps = deps + ["//tests"],
    )
