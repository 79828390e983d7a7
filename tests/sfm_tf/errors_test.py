import os

import pytest

from sfm_tf import errors


def test_is_a_value_error_so_that_library_users_can_catch_it_as_one():
    with pytest.raises(ValueError, match="expected one of fgsm, pgd"):
        raise errors.SfmError("Unknown attack 'pdg'; expected one of fgsm, pgd.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a häßlich 日本", "a häßlich 日本"),
        ("two\r\nlines", r"two\r\nlines"),
        ("\x1b[31m", r"\x1b[31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
    ],
    ids=["letters", "line_end", "control", "latin_1", "direction", "surrogate"],
)
def test_printable_text_is_one_line_that_can_be_encoded(text, expected):
    assert errors.printable(text) == expected
    errors.printable(text).encode("utf-8")


def test_lists_say_how_many_more_there_are():
    assert errors.listed("ab", limit=2) == "a, b"
    assert errors.listed("abcd", limit=2) == "a, b and 2 more"
    assert errors.enumerated(["A is odd."]) == "A is odd."
    assert errors.enumerated(["A.", "B."]) == "Found 2 problems. (1) A. (2) B."
    assert errors.numbered(["A.", "B.", "C."], limit=2) == "(1) A. (2) B. And 1 more."


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("one\n  two", "one two", id="lines"),
        pytest.param("\x1b[1mbold\x1b[0m word", "bold word", id="colours"),
        pytest.param("Exception encountered when calling A.call().\n\nwhy", "why", id="keras"),
        pytest.param("{{function_node f}} why [[{{node n}}]] [Op:MatMul]", "why", id="tensorflow"),
        pytest.param("", "ValueError", id="silence"),
        pytest.param("word " * 9, "word word …", id="length"),
    ],
)
def test_what_another_library_says_fits_into_a_line(said, kept):
    assert errors.in_one_line(ValueError(said), 12) == kept
