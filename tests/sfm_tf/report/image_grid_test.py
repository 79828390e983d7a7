import io

import matplotlib.text
import numpy as np
import PIL.Image
import pytest

from sfm_tf.report.figures import render_figure
from sfm_tf.report.image_grid import draw_grid, plain_words

RED, GREEN = (np.full((1, 4, 4, 3), colour, np.float32) for colour in ((1, 0, 0), (0, 1, 0)))


def _pixels(rows, captions=()) -> np.ndarray:
    figure = render_figure(draw_grid(rows, captions), "grid", "", "")
    return np.asarray(PIL.Image.open(io.BytesIO(figure.png)).convert("RGB"))


def _words(figure) -> list[str]:
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    return [*texts, *(axes.get_ylabel() for axes in figure.axes)]


def test_rows_are_one_below_the_other_and_columns_side_by_side():
    images = np.concatenate([RED, GREEN])
    pixels = _pixels({"first": images, "second": images[::-1]})
    red, green = (
        np.argwhere(np.all(pixels == colour, axis=-1)) for colour in ((255, 0, 0), (0, 255, 0))
    )
    top = pixels.shape[0] / 2
    red_above, green_above = (found[found[:, 0] < top] for found in (red, green))
    assert red_above[:, 1].max() < green_above[:, 1].min()
    red_below, green_below = (found[found[:, 0] > top] for found in (red, green))
    assert green_below[:, 1].max() < red_below[:, 1].min()


def test_grey_stands_beside_colour_and_what_is_beyond_is_black_or_white():
    strips = draw_grid({"mask": 7.0 - 14.0 * RED[..., :1], "image": RED}).axes
    shown = [np.asarray(axes.images[0].get_array()) for axes in strips]
    assert shown[0].shape == shown[1].shape == (4, 4, 3)
    assert np.all(shown[0] == 0.0)


def test_columns_have_their_words_and_more_of_them_continue_below():
    count = 11
    figure = draw_grid(
        {"one": np.repeat(RED, count, axis=0)}, [f"number {n}" for n in range(count)]
    )
    assert len(figure.axes) == 2
    assert _words(figure) == [*(f"number {n}" for n in range(count)), "one", "one"]
    assert [len(axes.texts) for axes in figure.axes] == [8, 3]


def test_no_word_is_read_as_a_formula():
    figure = draw_grid({r"$\frac{$": RED}, [r"a$b$ $\x{"])
    render_figure(figure, "words", "", "")
    texts = figure.findobj(matplotlib.text.Text)
    assert not any(t.get_parse_math() for t in texts if "$" in t.get_text())


def test_a_long_name_is_cut_and_stays_on_its_line():
    assert plain_words("sea\nlion") == "sea lion"
    assert plain_words("x" * 18) == "x" * 18
    assert plain_words("x" * 19) == "x" * 17 + "…"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
