import html

import jinja2
import pytest

from sfm_tf.report.rendering import html_environment, markdown_environment

HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&\\\n# e\r"


def test_values_show_as_they_read_and_are_no_mark_up():
    text = markdown_environment().from_string("- {{ value }}").render(value=HOSTILE)
    shown = text.removeprefix("- ")
    assert html.unescape(shown) == HOSTILE.replace("\n", " ").replace("\r", " ")
    assert not set("<>|*`[]\\\n\r") & set(shown)


def test_words_and_figures_stay_readable():
    template = markdown_environment().from_string("{{ a }} {{ b }}")
    assert template.render(a="class_0 – 50.0% (1.2–3.4)", b=7) == "class_0 – 50.0% (1.2–3.4) 7"


def test_what_a_template_calls_safe_is_left_alone():
    assert markdown_environment().from_string("{{ v | safe }}").render(v="a|b `c`") == "a|b `c`"


def test_values_are_text_in_html():
    text = html_environment().from_string("{{ value }}").render(value=HOSTILE)
    assert html.unescape(text) == HOSTILE
    assert not set("<>") & set(text)


def test_bytes_become_text_of_a_data_url():
    template = html_environment().from_string("{{ value | base64 }}")
    assert template.render(value=b"\x89PNG") == "iVBORw=="


def test_a_name_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        markdown_environment().from_string("{{ absent }}").render()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
