"""Lets tests read absl flags, which only `app.run` parses otherwise."""

from absl import flags


def pytest_configure() -> None:
    flags.FLAGS.mark_as_parsed()
