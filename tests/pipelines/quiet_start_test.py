import os

import pytest

from pipelines.quiet_start import hold_back_stderr


def test_drops_what_is_written_below_python(capfd):
    with hold_back_stderr():
        os.write(2, b"note of a C++ library\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_shows_what_was_held_back_when_an_error_follows(capfd):
    def fail():
        os.write(2, b"libfoo.so is missing\n")
        raise ImportError

    with pytest.raises(ImportError), hold_back_stderr():
        fail()
    assert capfd.readouterr().err == "libfoo.so is missing\n"
