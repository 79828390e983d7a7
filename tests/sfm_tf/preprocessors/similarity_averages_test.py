import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.similarity_averages import average_similar_pixels


def _similarity(sums):
    return tf.exp(sums / -2.0)


def _average_by_definition(channels, search_window, template_window):
    """One pixel of one image at a time, as the formula is written."""
    search, template = search_window // 2, template_window // 2
    border = search + template
    margins = [(border, border), (border, border), (0, 0)]
    averages = np.zeros_like(channels)
    for image, average in zip(channels, averages, strict=True):
        padded = np.pad(image, margins, mode="reflect")

        def patch(row, column, padded=padded):
            rows = slice(row - template, row + template + 1)
            return padded[rows, column - template : column + template + 1]

        for row, column in np.ndindex(*image.shape[:2]):
            here = row + border, column + border
            total = 0.0
            for down, right in np.ndindex(search_window, search_window):
                there = here[0] + down - search, here[1] + right - search
                weight = np.exp(-np.square(patch(*here) - patch(*there)).sum() / 2.0)
                average[row, column] += weight * padded[there]
                total += weight
            average[row, column] /= total
    return averages


@pytest.mark.parametrize(
    ("shape", "search_window", "template_window"),
    [((2, 6, 5, 1), 5, 3), ((1, 5, 7, 2), 3, 1), ((1, 3, 4, 2), 7, 5), ((1, 1, 1, 1), 3, 3)],
)
def test_equals_the_definition_pixel_by_pixel(shape, search_window, template_window):
    channels = np.random.default_rng(0).random(shape)
    expected = _average_by_definition(channels, search_window, template_window)
    averages = average_similar_pixels(
        tf.constant(channels), search_window, template_window, _similarity
    )
    np.testing.assert_allclose(averages, expected, rtol=1e-12)


def test_gradient_is_the_numerical_derivative():
    channels = tf.constant(np.random.default_rng(1).random((2, 4, 3, 2)))
    compiled = tf.function(lambda values: average_similar_pixels(values, 3, 3, _similarity))
    theoretical, numerical = tf.test.compute_gradient(compiled, [channels])
    np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-6)


def test_equal_weights_give_the_mean_of_the_search_window():
    channels = np.zeros((1, 7, 7, 1))
    channels[0, 3, 3, 0] = 9.0
    averages = average_similar_pixels(tf.constant(channels), 3, 1, tf.ones_like)
    expected = np.zeros((7, 7))
    expected[2:5, 2:5] = 1.0
    np.testing.assert_allclose(averages[0, :, :, 0], expected)


def test_graph_does_not_grow_with_the_search_window():
    def count_operations(search_window):
        function = tf.function(
            lambda channels: average_similar_pixels(channels, search_window, 3, _similarity)
        )
        graph = function.get_concrete_function(tf.TensorSpec([None, 8, 8, 1])).graph
        bodies = graph._functions.values()
        return len(graph.get_operations()) + sum(
            len(body.graph.get_operations()) for body in bodies
        )

    assert count_operations(21) == count_operations(3)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
