"""The one exception that a user of the software is meant to read, and words for it."""

import os
import re
import shutil
import textwrap
from collections.abc import Sequence


class SfmError(ValueError):
    """A mistake in the input, the configuration or the surroundings that the user can mend.

    Its message is one line that says what was found, what was expected and what to do. The
    stages in `pipelines` print it without a traceback; every other exception is a defect.
    """


def printable(text: str) -> str:
    """Returns a text from outside, such as a file's name, with what cannot be printed escaped.

    Line ends, control characters and bytes that are no UTF-8 (as `os.fsdecode` keeps them) become
    `\\n`, `\\x1b` and `\\xe9`, so that the text stays in one line and can be encoded.
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    first_escaped_byte, last_escaped_byte = 0xDC80, 0xDCFF
    if first_escaped_byte <= ord(letter) <= last_escaped_byte:
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def check_utf8(path: os.PathLike[str] | str, flag: str) -> None:
    """Raises `SfmError` if the path that `flag` gives is not UTF-8, as TensorFlow needs it."""
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SfmError(
            f"Invalid {flag} {printable(text)}; expected a path in UTF-8. Give another folder."
        ) from error


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Returns the first names, with commas, and how many there are more."""
    hidden = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {hidden} more" if hidden > 0 else "")


def numbered(problems: Sequence[str], limit: int = 10) -> str:
    """Returns one line of problems, each a sentence, and how many there are more."""
    places = [f"({number}) {text}" for number, text in enumerate(problems[:limit], start=1)]
    hidden = len(problems) - limit
    return " ".join([*places, f"And {hidden} more."] if hidden > 0 else places)


def enumerated(problems: Sequence[str]) -> str:
    """Returns one line of at least one problem, each a sentence, with their number."""
    if len(problems) == 1:
        return problems[0]
    return f"Found {len(problems)} problems. {numbered(problems)}"


def reason(error: Exception) -> str:
    """Returns what an error says; of a copied folder, why the first of its files failed.

    `shutil.copytree` raises one error with a list of all files that it could not copy.
    """
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        (*_, first), *_ = error.args[0]
        return str(first)
    return str(error)


_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|Exception encountered when calling \S+|(\[\[)?\{\{.*?\}\}(\]\])?|\[Op:.*?\]"
    r"|Arguments received by .*",
    re.DOTALL,
)
"""Colours of a terminal, and where in Keras' and TensorFlow's own code an error arose."""


def in_one_line(error: Exception, length: int = 240) -> str:
    """Returns what another library says in an error, on one line and without its own whereabouts.

    Args:
        error: The error.
        length: Characters kept at most; what is left out is shown as "…".

    Returns:
        Whole words; the error's kind where it says nothing.
    """
    text = _NOISE.sub("", reason(error)) or type(error).__name__
    return textwrap.shorten(text, length, placeholder=" …")
