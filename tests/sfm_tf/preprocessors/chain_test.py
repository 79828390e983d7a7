import cv2
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import KeyedDraws
from sfm_tf.preprocessors.total_variation import minimise_total_variation

OPERATIONS = ["bit_depth_4", "median_2", "non_local_means_5_3_4"]
CHAIN = "bit_depth_4+median_2+non_local_means_5_3_10"
IMAGES = np.random.default_rng(0).random((3, 8, 9, 3), dtype=np.float32)


def _gradient(preprocessor, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        values = preprocessor(images)
    return tape.gradient(values, images).numpy()


def test_chain_applies_its_operations_from_left_to_right():
    # 0.2 goes to 1/3 and on to 2/7; the other way round, to 1/7 and on to 0.
    image = tf.fill([1, 1, 1, 1], 0.2)
    assert parse_preprocessor("bit_depth_2+bit_depth_3")(image) == np.float32(2 / 7)
    assert parse_preprocessor("bit_depth_3+bit_depth_2")(image) == 0.0


def test_chain_is_the_composition_of_its_operations():
    np.testing.assert_array_equal(parse_preprocessor("none")(IMAGES), IMAGES)
    squeezed = np.rint(IMAGES * np.float32(15)) / np.float32(15)
    expected = scipy.ndimage.median_filter(squeezed, size=(1, 2, 2, 1), mode="reflect")
    np.testing.assert_array_equal(parse_preprocessor("bit_depth_4+median_2")(IMAGES), expected)


def test_non_local_means_takes_search_template_and_strength_in_this_order():
    levels = np.rint(IMAGES * 255).astype(np.uint8)
    expected = [
        cv2.fastNlMeansDenoisingColored(
            image, None, h=40, hColor=40, templateWindowSize=1, searchWindowSize=5
        )
        for image in levels
    ]
    denoised = parse_preprocessor("non_local_means_5_1_40")(IMAGES) * 255.0
    assert (np.abs(denoised - expected) < 1.01).mean() >= 0.99


@pytest.mark.parametrize("surrogate", ["identity", "smooth"])
@pytest.mark.parametrize("spec", ["none", *OPERATIONS, CHAIN])
def test_name_parses_to_an_equal_preprocessor(spec, surrogate):
    preprocessor = parse_preprocessor(spec, surrogate)
    assert (preprocessor.spec, preprocessor.surrogate) == (spec, surrogate)
    assert parse_preprocessor(preprocessor.spec, preprocessor.surrogate) == preprocessor
    assert preprocessor != parse_preprocessor("median_7", surrogate)


@pytest.mark.parametrize("spec", ["none", CHAIN])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_output_is_float32_in_the_unit_interval(spec, dtype):
    values = parse_preprocessor(spec)(tf.cast(IMAGES, dtype))
    assert values.dtype == tf.float32
    assert tf.reduce_min(values) >= 0.0
    assert tf.reduce_max(values) <= 1.0


@pytest.mark.parametrize("spec", ["none", *OPERATIONS, CHAIN])
def test_identity_surrogate_gives_a_gradient_of_ones(spec):
    np.testing.assert_array_equal(_gradient(parse_preprocessor(spec), IMAGES), np.ones_like(IMAGES))


@pytest.mark.parametrize("spec", [*OPERATIONS, CHAIN])
def test_smooth_surrogate_gives_a_finite_gradient_that_is_not_the_identity(spec):
    gradient = _gradient(parse_preprocessor(spec, "smooth"), 0.4 + 0.1 * IMAGES)
    assert np.isfinite(gradient).all()
    assert (gradient != 0).mean() > 0.9
    assert np.abs(gradient - 1.0).max() > 0.1


@pytest.mark.parametrize("spec", ["none", CHAIN])
def test_graph_serves_any_batch_without_python(spec, tmp_path):
    module = tf.Module()
    signature = [tf.TensorSpec([None, 8, 9, 3])]
    module.serve = tf.function(parse_preprocessor(spec, "smooth").__call__, signature)
    graph = module.serve.get_concrete_function().graph
    names = {node.op for node in graph.as_graph_def().node}
    for function in graph.as_graph_def().library.function:
        names |= {node.op for node in function.node_def}
    assert not {name for name in names if "PyFunc" in name}

    expected = parse_preprocessor(spec)(IMAGES).numpy()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for batch in (0, 1, 3):
        served = loaded.serve(tf.constant(IMAGES[:batch])).numpy()
        np.testing.assert_allclose(served, expected[:batch], atol=1e-6)


@pytest.mark.parametrize(
    "spec", ["pdg_3", "", "bit_depth_4+", "Median_2", "median 2", "none+median_2"]
)
def test_unknown_operation_lists_the_known_ones(spec):
    known = "bit_depth_BITS, median_WINDOW, non_local_means_SEARCH_TEMPLATE_STRENGTH"
    with pytest.raises(SfmError, match=f"Unknown preprocessor .*; expected none, .* of {known}"):
        parse_preprocessor(spec)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bit_depth_0", "bit_depth_BITS with bits a number from 1 to 8"),
        ("bit_depth_9", "bit_depth_BITS with bits a number from 1 to 8"),
        ("bit_depth", "bit_depth_BITS with"),
        ("median_1", "median_WINDOW with window a number from 2 to 7"),
        ("median_-2", "median_WINDOW with"),
        ("median_8", "median_WINDOW with"),
        ("median_2_3", "median_WINDOW with"),
        ("non_local_means_12_3_4", "search an odd number from 3 to 51"),
        ("non_local_means_13_4_4", "template an odd number from 1 to 11"),
        ("non_local_means_13_3_0", "strength a number from 1 to 255"),
        ("non_local_means_13_3", "non_local_means_SEARCH_TEMPLATE_STRENGTH with"),
    ],
)
def test_wrong_parameters_say_what_was_expected(spec, expected):
    with pytest.raises(SfmError, match=f"Invalid preprocessor '{spec}'; expected .*{expected}"):
        parse_preprocessor(f"median_2+{spec}")


def test_unknown_surrogate_lists_the_known_ones():
    with pytest.raises(
        SfmError, match="Unknown surrogate 'mean'; expected one of identity, smooth"
    ):
        parse_preprocessor("median_2", "mean")


@pytest.mark.parametrize(
    ("spec", "draws", "quantises"),
    [
        ("none", False, False),
        ("median_2", False, False),
        ("bit_depth_4+median_2", False, True),
        ("jpeg_75", False, True),
        ("non_local_means_13_3_2", False, True),
        ("median_2+total_variation_50_30", True, False),
        # Nothing is dropped, so nothing is drawn.
        ("total_variation_0_30", False, False),
    ],
)
def test_it_is_known_what_draws_and_what_picks_one_of_a_few_values(spec, draws, quantises):
    preprocessor = parse_preprocessor(spec)
    assert (preprocessor.is_random, preprocessor.quantises) == (draws, quantises)
    others = preprocessor.with_draws(KeyedDraws(b"k" * 16))
    assert (others is preprocessor) == (not draws)
    assert preprocessor(np.zeros((2, 6, 6, 1), np.float32)).shape == (2, 6, 6, 1)


def test_draws_follow_from_the_images_that_the_caller_names():
    images = np.random.default_rng(0).random((3, 6, 6, 1), dtype=np.float32)
    tvm, key = parse_preprocessor("total_variation_50_30"), KeyedDraws(b"k" * 16)
    seeds = key.seeds(tf.constant(images))
    expected = minimise_total_variation(tf.constant(images / 2), seeds, 50, 30)
    found = tvm.with_draws(key)(images / 2, drawn_from=images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - tvm.with_draws(key)(images / 2)).max() > 1e-3
