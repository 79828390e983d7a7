"""Runs the tests of one folder, with pytest's own options: how Bazel starts each test target."""

import pytest

if __name__ == "__main__":
    raise SystemExit(pytest.main())
