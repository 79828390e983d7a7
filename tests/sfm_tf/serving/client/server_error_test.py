import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.server_error import ServerError, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\t c ", "a b c"),
        ("red \x1b[31m \x07\u202e", "red [31m"),
        ("x" * 501, "x" * 500 + "..."),
        ("", ""),
    ],
)
def test_any_text_becomes_one_printable_line(text, line):
    assert one_line(text) == line


def test_is_an_error_that_users_are_meant_to_read():
    error = ServerError("The server answered 404 Not Found: gone.", code="404")
    assert isinstance(error, SfmError)
    assert (str(error), error.code) == ("The server answered 404 Not Found: gone.", "404")
    assert not error.retryable


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
