"""Each fresh Python process takes the seconds that TensorFlow loads in, so most tests do without.

Those run the script that the process would run in the process of the test.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from sfm_tf.datasets.decoding import decode_pixels
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import FreshDraws
from sfm_tf.serving import fresh_process_check, signatures, verification
from sfm_tf.serving.saved_model import export_saved_model, read_saved_model
from sfm_tf.serving.verification import (
    Agreement,
    BatchPerformance,
    Pass,
    Performance,
    answer_in_fresh_process,
    compare_answers,
    compiled_outputs,
    describe_performance,
    read_performance,
    verify_saved_model,
)

IMAGES = np.random.default_rng(0).random((7, 2, 2, 1)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
MASK = np.float32(0.75)
SIGNATURES = ["serving_default", "predict_bytes", "explain"]


@pytest.fixture(scope="module")
def defended():
    dense = keras.layers.Dense(3, use_bias=False)
    classifier = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), dense])
    dense.set_weights([KERNEL])
    masker = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(1, 1)])
    masker.set_weights([np.zeros((1, 1, 1, 1)), np.float32([MASK])])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_1"))


@pytest.fixture(scope="module")
def compare(defended):
    """Compares answers with those of the Keras model, compiled once for each signature."""
    computes = {name: compiled_outputs(name, defended, (2, 2, 1)) for name in SIGNATURES}

    def run(signature, answers, batch_size=3):
        return compare_answers(signature, answers, computes[signature], IMAGES, batch_size)

    return run


def served() -> dict[str, dict[str, np.ndarray]]:
    """The right answers under each signature, as a SavedModel gives them."""
    masked = MASK * IMAGES
    quantised = (masked >= 0.5).astype(np.float32)
    logits = quantised.reshape(7, 4) @ KERNEL
    class_id = {"class_id": np.argmax(logits, axis=-1)}
    scores = {"logits": logits, "probabilities": scipy.special.softmax(logits, axis=-1)}
    masks = np.full((7, 2, 2, 1), MASK)
    arrays = {"mask": masks, "masked_image": masked, "defended_image": quantised}
    files = {
        "mask_png_bytes": np.full((7, 2, 2, 1), 191, np.uint8),  # 191.25
        "masked_png_bytes": np.rint(255 * masked).astype(np.uint8),
        "defended_png_bytes": (255 * quantised).astype(np.uint8),
    }
    return {
        "serving_default": {**scores, **class_id},
        "predict_bytes": {**scores, **class_id, "status": np.zeros(7, np.int64)},
        "explain": {**arrays, **files, **class_id},
    }


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_right_answers_agree(compare, signature, batch_size):
    answers = served()[signature]
    found = compare(signature, answers, batch_size)
    assert found.disagreeing_labels == 0
    assert found.excesses() == {}
    assert set(found.max_differences) == set(answers) - {"class_id"}


@pytest.mark.parametrize(
    ("signature", "output", "change", "expected"),
    [
        ("serving_default", "logits", 0.01, 0.01),
        ("serving_default", "probabilities", np.nan, np.nan),
        ("predict_bytes", "status", 1, 1.0),
        ("explain", "mask", -0.2, 0.2),
        ("explain", "defended_image", 1 / 255, 1 / 255),
        ("explain", "masked_png_bytes", 1, 1 / 255),
        ("explain", "mask_png_bytes", 2, 1.75 / 255),
    ],
)
def test_a_single_wrong_value_is_found(compare, signature, output, change, expected):
    answers = served()[signature]
    change = np.asarray(change, answers[output].dtype)
    answers[output] = answers[output].copy()
    answers[output][-1] += change
    found = compare(signature, answers)
    assert list(found.excesses()) == [output]
    # Rounding to a level may have taken up to half of one from a difference, or added it.
    tolerance = 0.51 / 255 if output == "masked_png_bytes" else 1e-5
    assert found.max_differences[output] == pytest.approx(expected, abs=tolerance, nan_ok=True)


def test_wrong_labels_are_counted_over_all_batches(compare):
    answers = served()["serving_default"]
    answers["class_id"][[0, 4, 6]] += 1
    found = compare("serving_default", answers)
    assert found.disagreeing_labels == 3
    assert found.excesses() == {}


def test_a_wrong_shape_is_a_difference(compare):
    answers = served()["serving_default"]
    answers["logits"] = answers["logits"][:, :1]
    found = compare("serving_default", answers)
    assert found.excesses() == {"logits": np.inf}


@pytest.mark.parametrize("missing", ["status", "class_id"])
def test_outputs_are_those_of_the_signature(compare, missing):
    answers = served()["predict_bytes"]
    del answers[missing]
    answers["other"] = answers["logits"]
    with pytest.raises(SfmError, match=r"predict_bytes .* gives .*other.*; expected .*status"):
        compare("predict_bytes", answers)


def test_the_worse_of_two_comparisons_keeps_what_is_not_a_number():
    first = Agreement(1, {"logits": 0.5, "probabilities": np.nan})
    second = Agreement(2, {"logits": 0.25, "probabilities": 0.0})
    for worse in (first.worse(second), second.worse(first)):
        assert worse.disagreeing_labels == 2
        assert worse.max_differences["logits"] == 0.5
        assert np.isnan(worse.max_differences["probabilities"])


PERFORMANCE = Performance(
    cpu_count=2,
    loaded_memory_bytes=700_000_000,
    batches=(
        BatchPerformance(1, 100, 0.00531, 0.0105, 830_332_928),
        BatchPerformance(64, 11, 0.46249, 1.5, 1_034_000_000),
    ),
)


def test_the_line_has_latency_and_memory_of_each_batch_size():
    assert describe_performance(PERFORMANCE) == (
        "on 2 CPUs: batch 1: median 5.3 ms, p95 10.5 ms, peak memory 830 MB; "
        "batch 64: median 462.5 ms, p95 1,500.0 ms, peak memory 1,034 MB"
    )


def test_memory_that_the_system_does_not_tell_is_not_made_up():
    unknown = (dataclasses.replace(PERFORMANCE.batches[0], peak_memory_bytes=None),)
    line = describe_performance(dataclasses.replace(PERFORMANCE, batches=unknown))
    assert line.endswith("batch 1: median 5.3 ms, p95 10.5 ms, peak memory not measured")


def test_what_is_written_as_json_is_read_again():
    written = json.dumps(dataclasses.asdict(PERFORMANCE))
    assert read_performance(json.loads(written)) == PERFORMANCE


NUMBERS = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
PASSES = [Pass("serving_default", "images", 2, 3), Pass("predict_bytes", "image_bytes", 1, 2)]

ANSWERING = """
import json, os, pathlib, sys
import numpy as np
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
assert request["timing"]["signature"] == "serving_default"
assert request["timing"]["batch_sizes"] == [1, 8, 64]
assert not [name for name in os.environ if name.startswith("PYTHON")], "inherited"
assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
assert sys.flags.isolated
for number, asked in enumerate(request["passes"]):
    examples = np.load(folder / (asked["input_name"] + ".npy"), allow_pickle=False)[:asked["count"]]
    np.save(folder / f"{number}.lengths.npy", np.array([len(example) for example in examples]))
    np.save(folder / f"{number}.sizes.npy", asked["batch_size"] * np.ones(len(examples)))
batch = dict(batch_size=1, calls=3, median_seconds=0.5, p95_seconds=1.0, peak_memory_bytes=None)
performance = dict(cpu_count=7, loaded_memory_bytes=None, batches=[batch])
(folder / "performance.json").write_text(json.dumps(performance))
"""


def answer(
    folder: pathlib.Path, script: str, monkeypatch: pytest.MonkeyPatch, timeout_seconds: float = 60
) -> tuple[list[verification.Answers], Performance]:
    path = folder / "script.py"
    path.write_text(script)
    monkeypatch.setattr(verification.fresh_process_check, "__file__", str(path))
    scratch = folder / "scratch"
    scratch.mkdir()
    inputs = {"images": NUMBERS, "image_bytes": np.array([b"four", b"", b"seven.."])}
    return answer_in_fresh_process(folder, inputs, PASSES, scratch, timeout_seconds)


def test_every_pass_gets_its_examples_and_gives_its_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    (images, files), performance = answer(tmp_path, ANSWERING, monkeypatch)
    np.testing.assert_array_equal(images["lengths"], [1, 1, 1])
    np.testing.assert_array_equal(images["sizes"], [2, 2, 2])
    np.testing.assert_array_equal(files["lengths"], [4, 0])
    np.testing.assert_array_equal(files["sizes"], [1, 1])
    assert performance.cpu_count == 7
    assert performance.batches[0].p95_seconds == 1.0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise KeyError('no such signature')", r"\(exit status 1\): KeyError: 'no such signature"),
        ("raise SystemExit(3)", r"\(exit status 3\): no message"),
        ("import os; os.kill(os.getpid(), 9)", r"ended by SIGKILL, often for lack of memory"),
        ("import os; os.abort()", r"ended by SIGABRT\)"),
        ("pass", r"performance\.json"),
    ],
)
def test_a_process_that_dies_is_told_with_its_last_words(tmp_path, monkeypatch, script, message):
    with pytest.raises(SfmError, match=message):
        answer(tmp_path, script, monkeypatch)


def test_a_process_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    with pytest.raises(SfmError, match=r"took over 0\.3 seconds; verify with fewer images"):
        answer(tmp_path, "import time; time.sleep(60)", monkeypatch, timeout_seconds=0.3)


CLASS_NAMES = ["a", "b", "c"]
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (11, 6, 6, 1)).astype(np.float32) / np.float32(255)


def defended_model() -> DefendedModel:
    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv2D(4, 3, activation="relu")
    classifier = keras.Sequential(
        [keras.Input((6, 6, 1)), convolution, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    masker = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_4+median_2"))


@pytest.fixture(scope="module")
def evaluated():
    return defended_model()


@pytest.fixture(scope="module")
def labels(evaluated):
    """Classes of which the model is right on 8 of 11."""
    predicted = np.argmax(evaluated(PIXELS).numpy(), axis=-1)
    return np.where(np.arange(11) < 8, predicted, (predicted + 1) % 3)


@pytest.fixture(scope="module")
def exported(evaluated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_saved_model(evaluated, CLASS_NAMES, folder)
    return folder


def run_in_this_process(scratch: pathlib.Path, timeout_seconds: float) -> None:
    """Stands in for the fresh process, which needs seconds to start."""
    library = sys.modules["sfm_tf"]
    try:
        fresh_process_check.main([str(scratch)])
    finally:
        sys.modules["sfm_tf"] = library


@pytest.fixture(scope="module")
def answered(evaluated, labels, exported, tmp_path_factory):
    """What the script leaves of the export, run in this process: number of the pass and output."""
    folder = tmp_path_factory.mktemp("answered")

    def run(scratch, timeout_seconds):
        run_in_this_process(scratch, timeout_seconds)
        shutil.copytree(scratch, folder, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_run", run)
        patch.setattr(verification, "MEASURED_BATCH_SIZES", (1,))
        patch.setattr(verification, "MOST_CALLS", 3)
        verify_saved_model(exported, evaluated, PIXELS, labels)
    return folder


@pytest.fixture
def spoil(answered, monkeypatch):
    """Stands in for the fresh process: the right answers, but for one value."""

    def set_up(file, place, change):
        def run(scratch, timeout_seconds):
            shutil.copytree(answered, scratch, dirs_exist_ok=True)
            np.load(scratch / f"{file}.npy", mmap_mode="r+")[place] += change

        monkeypatch.setattr(verification, "_run", run)

    return set_up


def test_an_untouched_export_answers_as_the_keras_model(evaluated, labels, exported, monkeypatch):
    monkeypatch.setattr(verification, "MOST_CALLS", 10)
    found = verify_saved_model(exported, evaluated, PIXELS, labels, batch_size=4)
    assert found.examples == 11
    assert found.batch_sizes == (4, 1)
    assert found.accuracy == 8 / 11
    assert list(found.signatures) == SIGNATURES
    for agreement in found.signatures.values():
        assert agreement.disagreeing_labels == 0
    assert found.signatures["serving_default"].max_differences["logits"] <= 1e-4
    assert found.signatures["predict_bytes"].max_differences["status"] == 0
    assert found.signatures["explain"].max_differences["masked_png_bytes"] <= 0.0021
    batches = found.performance.batches
    assert [batch.batch_size for batch in batches] == [1, 8, 64]
    assert all(0 < batch.median_seconds <= batch.p95_seconds for batch in batches)
    if sys.platform.startswith("linux"):
        # TensorFlow alone takes more than 100 MB, and the peak of a process never falls.
        peaks = [found.performance.loaded_memory_bytes, *(b.peak_memory_bytes for b in batches)]
        assert sorted(peaks) == peaks
        assert peaks[0] > 100_000_000


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("0.logits", 0.5, r"under serving_default 0 of 11 .*, logits by 0\.5\."),
        ("1.logits", 0.5, r"under serving_default 0 of 11 .*, logits by 0\.5\."),
        ("2.class_id", 1, "under predict_bytes 1 of 11 labels differ"),
        ("3.probabilities", 0.01, r"under predict_bytes 0 of 11 .*, probabilities by 0\.01\."),
        ("4.mask", 0.01, r"under explain 0 of 11 .*, mask by 0\.01\."),
        ("5.masked_png_bytes", 4, r"under explain 0 of 11 .*, masked_png_bytes by 0\.01"),
    ],
)
def test_one_wrong_answer_in_batches_or_alone_is_refused(
    evaluated, labels, exported, spoil, file, change, message
):
    spoil(file, (0,) if file.endswith("id") else (0, 0), change)
    with pytest.raises(SfmError, match=message):
        verify_saved_model(exported, evaluated, PIXELS, labels)


def test_another_arithmetic_is_told_but_not_refused(evaluated, labels, exported, spoil):
    spoil("0.logits", (0, 0), 2.0)
    found = verify_saved_model(exported, evaluated, PIXELS, labels, same_arithmetic=False)
    assert found.signatures["serving_default"].max_differences["logits"] > 1.0


def test_what_is_not_a_number_is_refused_in_any_arithmetic(evaluated, labels, exported, spoil):
    spoil("0.logits", (0, 0), np.nan)
    with pytest.raises(SfmError, match="under serving_default logits hold NaN"):
        verify_saved_model(exported, evaluated, PIXELS, labels, same_arithmetic=False)


def resize(pixels, size, method="bilinear", antialias=True):
    return tf.image.resize(pixels, size, method, antialias=antialias)


def to_levels(values):
    return tf.cast(tf.round(values), tf.uint8)


def decode(encoded, longest_side):
    pixels, status = decode_pixels(encoded, longest_side)
    is_jpeg = tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"

    def without_smooth_colours():
        return tf.io.decode_jpeg(encoded, channels=3, fancy_upscaling=False)

    return tf.cond(is_jpeg, without_smooth_colours, lambda: pixels), status


@pytest.mark.parametrize(
    ("place", "name", "changed"),
    [
        (signatures, "resize_pixels", None),
        (signatures, "resize_pixels", resize),
        (signatures, "resize_pixels", lambda *image: to_levels(resize(*image, "area"))),
        (signatures, "resize_pixels", lambda *image: to_levels(resize(*image, antialias=False))),
        (signatures, "resize_pixels", lambda *image: to_levels(resize(*image) - 0.5)),
        (signatures.decoding, "decode_pixels", decode),
    ],
    ids=["unchanged", "not rounded", "area", "not antialiased", "cut", "JPEG"],
)
def test_files_that_are_not_treated_as_by_ingest_are_found(
    place, name, changed, tmp_path, monkeypatch
):
    inputs = keras.Input((6, 6, 3))
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=0))
    classifier = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    defended = DefendedModel(classifier)
    images = RANDOM.integers(0, 256, (7, 6, 6, 3)).astype(np.float32) / np.float32(255)
    monkeypatch.setattr(verification, "_run", run_in_this_process)
    monkeypatch.setattr(verification, "MEASURED_BATCH_SIZES", (1,))
    monkeypatch.setattr(verification, "MOST_CALLS", 3)
    with monkeypatch.context() as patch:
        if changed:
            patch.setattr(place, name, changed)
        export_saved_model(defended, CLASS_NAMES, tmp_path / "model")
    expected = pytest.raises(SfmError, match="model: under predict_bytes [^;]*, logits by 0")
    with expected if changed else contextlib.nullcontext():
        verify_saved_model(tmp_path / "model", defended, images, np.zeros(7, np.int64))


@pytest.mark.parametrize("missing", SIGNATURES)
def test_a_missing_signature_is_refused(evaluated, labels, exported, tmp_path, missing):
    message = read_saved_model(exported)
    del message.meta_graphs[0].signature_def[missing]
    (tmp_path / "saved_model.pb").write_bytes(message.SerializeToString())
    with pytest.raises(SfmError, match=r"has the signatures .*; expected .*" + missing):
        verify_saved_model(tmp_path, evaluated, PIXELS, labels)


@pytest.mark.parametrize("contents", [None, b"\xff\xff no protocol buffer"])
def test_a_folder_without_a_model_is_refused(evaluated, labels, tmp_path, contents):
    if contents is not None:
        (tmp_path / "saved_model.pb").write_bytes(contents)
    with pytest.raises(SfmError, match=r"Cannot read a SavedModel in .*; export again"):
        verify_saved_model(tmp_path, evaluated, PIXELS, labels)


def test_the_process_has_more_time_for_more_images(evaluated, labels, exported, monkeypatch):
    limits = []

    def stop(folder, timeout_seconds):
        limits.append(timeout_seconds)
        raise SfmError("stopped")

    monkeypatch.setattr(verification, "_run", stop)
    for count in (1, 11):
        images, classes = PIXELS[:count], labels[:count]
        with pytest.raises(SfmError, match="stopped"):
            verify_saved_model(exported, evaluated, images, classes)
    assert limits == [606.0, 666.0]


@pytest.fixture(scope="module")
def fresh(evaluated):
    """A model that draws afresh at each call, and has a masker, which does not."""
    random = parse_preprocessor("total_variation_50_30").with_draws(FreshDraws())
    return DefendedModel(evaluated.classifier, evaluated.masker, random)


def test_a_model_that_draws_afresh_is_compared_by_how_often_it_agrees_with_itself(
    fresh, labels, tmp_path, monkeypatch
):
    monkeypatch.setattr(verification, "_run", run_in_this_process)
    monkeypatch.setattr(verification, "MEASURED_BATCH_SIZES", (1,))
    monkeypatch.setattr(verification, "MOST_CALLS", 3)
    export_saved_model(fresh, CLASS_NAMES, tmp_path / "model")
    # Two calls differ, and so do equal images beside each other.
    serve = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    equal = tf.constant(np.repeat(PIXELS[:1], 4, axis=0))
    answers = np.concatenate([serve(images=equal)["logits"] for _ in range(2)])
    assert len(np.unique(answers[:, 0])) == 8

    images, classes = np.tile(PIXELS, (10, 1, 1, 1)), np.tile(labels, 10)
    found = verify_saved_model(tmp_path / "model", fresh, images, classes).signatures
    assert found["serving_default"].random_outputs == {"logits", "probabilities"}
    assert found["explain"].random_outputs == {"defended_image", "defended_png_bytes"}
    # Another model's classes differ more often than this one's own.
    classifier = keras.models.clone_model(fresh.classifier)
    classifier.set_weights([-weight for weight in fresh.classifier.get_weights()])
    other = DefendedModel(classifier, fresh.masker, fresh.preprocessor)
    with pytest.raises(SfmError, match=r"labels differ \(\d+ when the model is asked twice\)"):
        verify_saved_model(tmp_path / "model", other, images, classes)


@pytest.mark.parametrize(
    ("labels", "own_labels", "difference", "is_wrong"),
    [
        # Wilson's intervals of 99.9%: 5 of 100 is at most 0.176, and 32 of 100 at least 0.190.
        (32, 5, 0.5, True),
        (12, 5, 0.5, False),
        (0, 0, 0.5, False),
        # What the model itself gives alike has to be given alike.
        (1, 5, 0.0, True),
        (0, 0, 0.0, False),
    ],
)
def test_labels_differ_too_often_beyond_chance(labels, own_labels, difference, is_wrong):
    found = Agreement(labels, {"logits": 0.0}, own_labels, {"logits": difference})
    assert found.differs_too_often(100) == is_wrong


def test_chance_excuses_no_value_that_is_not_a_number_and_no_other_output():
    differences = {"logits": np.nan, "probabilities": 0.5, "mask": 0.5}
    own = {"logits": 1.0, "probabilities": 1.0, "mask": 0.0}
    assert set(Agreement(0, differences, 0, own).excesses()) == {"logits", "mask"}
