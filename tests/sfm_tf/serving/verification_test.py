"""Each fresh Python process takes the seconds that TensorFlow loads in, so most tests do without.

Those run the script that the process would run in the process of the test.
"""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving import fresh_process, fresh_process_check
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.verification import verify_saved_model

CLASS_NAMES = ["a", "b", "c"]
SIGNATURES = ["serving_default", "predict_bytes", "explain"]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (11, 6, 6, 1)).astype(np.float32) / np.float32(255)


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
def defended():
    return defended_model()


@pytest.fixture(scope="module")
def labels(defended):
    """Classes of which the model is right on 8 of 11."""
    predicted = np.argmax(defended(IMAGES).numpy(), axis=-1)
    return np.where(np.arange(11) < 8, predicted, (predicted + 1) % 3)


@pytest.fixture(scope="module")
def exported(defended, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_saved_model(defended, CLASS_NAMES, folder)
    return folder


@pytest.fixture(scope="module")
def tampered(tmp_path_factory):
    """An export of other weights, in the last layer of the classifier and in the masker."""
    model = defended_model()
    bias = model.classifier.layers[-1].bias
    bias.assign(bias + [0.0, 2.5, 0.0])
    mask_bias = model.masker.layers[-1].bias
    mask_bias.assign(mask_bias + 1.0)
    folder = tmp_path_factory.mktemp("tampered") / "model"
    export_saved_model(model, CLASS_NAMES, folder)
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    def run(folder, timeout_seconds):
        library = sys.modules["sfm_tf"]
        try:
            fresh_process_check.main([str(folder)])
        finally:
            sys.modules["sfm_tf"] = library

    monkeypatch.setattr(fresh_process, "_run", run)
    monkeypatch.setattr(fresh_process, "MEASURED_BATCH_SIZES", (1,))
    monkeypatch.setattr(fresh_process, "MOST_CALLS", 3)


def mixed(sources, folder):
    """Saves signatures of several SavedModels, by name, as one."""
    module = tf.Module()
    module.loaded = [tf.saved_model.load(str(source)) for source in sources.values()]
    signatures = {
        name: loaded.signatures[name] for name, loaded in zip(sources, module.loaded, strict=True)
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def test_an_untouched_export_answers_as_the_keras_model(defended, labels, exported):
    found = verify_saved_model(exported, defended, IMAGES, labels, batch_size=4)
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
    ("signature", "message"),
    [
        ("serving_default", r"under serving_default \d+ of 11 labels differ, logits by"),
        ("predict_bytes", r"under predict_bytes \d+ of 11 labels differ, logits by"),
        ("explain", r"under explain \d+ of 11 labels differ, mask by 0\.\d+, masked_image by"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_other_weights_behind_one_signature_are_refused(
    defended, labels, exported, tampered, tmp_path, signature, message
):
    sources = {name: tampered if name == signature else exported for name in SIGNATURES}
    folder = mixed(sources, tmp_path / "model")
    with pytest.raises(SfmError, match=message) as caught:
        verify_saved_model(folder, defended, IMAGES, labels)
    assert str(caught.value).count("labels differ") == 1


@pytest.mark.parametrize(("number", "place"), [(0, -1), (1, 0)])
@pytest.mark.usefixtures("in_this_process")
def test_one_wrong_answer_in_batches_or_alone_is_refused(
    defended, labels, exported, monkeypatch, number, place
):
    run = fresh_process._run

    def run_and_spoil(folder, timeout_seconds):
        run(folder, timeout_seconds)
        logits = np.load(folder / f"{number}.logits.npy", mmap_mode="r+")
        logits[place, 0] += 0.5

    monkeypatch.setattr(fresh_process, "_run", run_and_spoil)
    with pytest.raises(SfmError, match=r"under serving_default 0 of 11 .*, logits by 0\.5\."):
        verify_saved_model(exported, defended, IMAGES, labels)


@pytest.mark.usefixtures("in_this_process")
def test_another_arithmetic_is_told_but_not_refused(defended, labels, tampered):
    found = verify_saved_model(tampered, defended, IMAGES, labels, same_arithmetic=False)
    assert found.signatures["serving_default"].max_differences["logits"] > 1.0


@pytest.mark.usefixtures("in_this_process")
def test_what_is_not_a_number_is_refused_in_any_arithmetic(defended, labels, tmp_path):
    model = defended_model()
    bias = model.classifier.layers[-1].bias
    bias.assign([np.nan, 0.0, 0.0])
    export_saved_model(model, CLASS_NAMES, tmp_path / "model")
    with pytest.raises(SfmError, match=r"under serving_default logits, probabilities hold NaN"):
        verify_saved_model(tmp_path / "model", defended, IMAGES, labels, same_arithmetic=False)


@pytest.mark.parametrize("missing", SIGNATURES)
def test_a_missing_signature_is_refused(defended, labels, exported, tmp_path, missing):
    sources = {name: exported for name in SIGNATURES if name != missing}
    folder = mixed(sources, tmp_path / "model")
    with pytest.raises(SfmError, match=r"has the signatures .*; expected .*" + missing):
        verify_saved_model(folder, defended, IMAGES, labels)


@pytest.mark.usefixtures("in_this_process")
def test_only_required_signatures_have_to_be_there(defended, labels, exported, tmp_path):
    folder = mixed({"serving_default": exported, "explain": exported}, tmp_path / "model")
    found = verify_saved_model(
        folder, defended, IMAGES, labels, batch_size=1, required_signatures=["serving_default"]
    )
    assert list(found.signatures) == ["serving_default", "explain"]
    assert found.batch_sizes == (1,)
    assert found.accuracy == 8 / 11


def test_damaged_variables_are_refused(defended, labels, exported, tmp_path):
    damaged = tmp_path / "model"
    (damaged / "variables").mkdir(parents=True)
    for path in exported.rglob("*"):
        if path.is_file() and "assets.extra" not in path.parts:
            (damaged / path.relative_to(exported)).write_bytes(path.read_bytes())
    data = damaged / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.raises(SfmError, match=r"does not work in a fresh process without sfm_tf"):
        verify_saved_model(damaged, defended, IMAGES, labels)


@pytest.mark.parametrize("contents", [None, b"\xff\xff no protocol buffer"])
def test_a_folder_without_a_model_is_refused(defended, labels, tmp_path, contents):
    if contents is not None:
        (tmp_path / "saved_model.pb").write_bytes(contents)
    with pytest.raises(SfmError, match=r"Cannot read a SavedModel in .*; export again"):
        verify_saved_model(tmp_path, defended, IMAGES, labels)


def test_the_process_has_more_time_for_more_images(defended, labels, exported, monkeypatch):
    limits = []

    def stop(folder, timeout_seconds):
        limits.append(timeout_seconds)
        raise SfmError("stopped")

    monkeypatch.setattr(fresh_process, "_run", stop)
    for count, options in ((1, {}), (11, {}), (1, {"timeout_seconds": 5.0})):
        with pytest.raises(SfmError, match="stopped"):
            verify_saved_model(exported, defended, IMAGES[:count], labels[:count], **options)
    assert limits == [606.0, 666.0, 5.0]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
