import io
import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.subjects import model_digest
from sfm_tf.models.imported_model import load_classifier, load_keras_file


def _saved(path, *layers):
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), *layers])
    model.save(path)
    return model


def _cut(path):
    path.write_bytes(path.read_bytes()[:100])


def _with_code(path):
    _saved(path, keras.layers.Lambda(lambda values: values * 2.0))


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), _cut, lambda path: path.write_text("x"), _with_code]
)
def test_file_that_is_no_safe_model_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "model.keras"
    _saved(path, keras.layers.Dense(2))
    damage(path)
    with pytest.raises(SfmError, match=r"^Cannot read .*model\.keras \(.+\); train again\.$") as e:
        load_keras_file(path, "train again")
    assert "\n" not in str(e.value)


SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)


def _classifier(outputs=3):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(SHAPE),
        keras.layers.Flatten(),
        keras.layers.Dense(8, "tanh"),
        keras.layers.Dense(outputs),
    ]
    return keras.Sequential(layers)


class Answers(tf.Module):
    """A program with a signature of several outputs, as a server loads it."""

    def __init__(self, model, names):
        super().__init__()
        self.model = model
        self.names = names

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE), name="images")])
    def answer(self, images):
        return {name: self.model(images) * (place + 1) for place, name in enumerate(self.names)}

    def save(self, folder):
        tf.saved_model.save(self, str(folder), signatures={"serving_default": self.answer})


def _imported_model_saved(kind, model, tmp_path):
    path = tmp_path / ("model.keras" if kind == "keras" else "model")
    if kind == "keras":
        model.save(path)
    elif kind == "exported":
        model.export(path, verbose=False)
    else:
        Answers(model, ["other", "logits"]).save(path)
        return path, 2.0
    return path, 1.0


@pytest.mark.parametrize("kind", ["keras", "exported", "named"])
def test_answers_and_differentiates_as_what_was_saved(tmp_path, kind):
    model = _classifier()
    path, factor = _imported_model_saved(kind, model, tmp_path)
    loaded = load_classifier(path, SHAPE, 3)
    assert (loaded.input_shape, loaded.output_shape) == ((None, *SHAPE), (None, 3))
    np.testing.assert_allclose(loaded(IMAGES), factor * model(IMAGES), rtol=1e-5)

    def gradient(of):
        images = tf.constant(IMAGES)
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(of(images)[:, 0])
        return tape.gradient(loss, images)

    np.testing.assert_allclose(gradient(loaded), factor * gradient(model), rtol=1e-4, atol=1e-7)


def test_a_model_tells_itself_apart_by_its_files(tmp_path):
    configs = []
    for name, outputs in (("a", ["x"]), ("b", ["logits"])):
        Answers(_classifier(), outputs).save(tmp_path / name)
        loaded = load_classifier(tmp_path / name, SHAPE, 3)
        configs.append(loaded.layers[-1].get_config()["content"])
    assert configs[0] != configs[1]


def _program(answer, spec, signature="serving_default"):
    """Returns a function that saves a program around a classifier, when it is called."""

    def save(path):
        program = tf.Module()
        program.model = _classifier()
        function = tf.function(lambda values: answer(program.model, values), input_signature=[spec])
        tf.saved_model.save(program, path, signatures={signature: function})

    return save


def _images(dtype=tf.float32, shape=(None, *SHAPE)):
    return tf.TensorSpec(shape, dtype, name="images")


def _taking(dtype=tf.float32, shape=(None, *SHAPE)):
    def answer(model, images):
        return {"y": model(tf.cast(images, tf.float32))}

    return _program(answer, _images(dtype, shape))


def _giving(**outputs):
    def answer(model, images):
        return {name: output(model(images)) for name, output in outputs.items()}

    return _program(answer, _images())


def _decoding(model, files):
    return model(tf.zeros((tf.size(files), *SHAPE)))


def _cut_saved_model(path):
    _taking()(path)
    _cut(path / "saved_model.pb")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda path: None, "No model", id="nothing"),
        pytest.param(pathlib.Path.mkdir, "is no SavedModel; expected saved_model.pb", id="folder"),
        pytest.param(
            lambda path: _taking()(path / "1"), r"saved_model.pb in it; it holds 1", id="versions"
        ),
        pytest.param(_cut_saved_model, r"Cannot read SavedModel .+write it again", id="damaged"),
        pytest.param(
            lambda path: _classifier(4).export(path, verbose=False),
            r"to \(4,\); expected",
            id="classes",
        ),
        pytest.param(
            _program(_decoding, tf.TensorSpec((None,), tf.string, name="files")),
            r"takes encoded files, 'files' string \(any,\); expected float32 images",
            id="files",
        ),
        pytest.param(_taking(tf.uint8), r"takes 'images' uint8 \(any, 4, 4, 1\)", id="uint8"),
        pytest.param(
            _taking(tf.float16), r"takes 'images' float16 .+ expected float32", id="16bit"
        ),
        pytest.param(
            _taking(shape=(1, *SHAPE)), r"does not take two images .+ any number", id="one_image"
        ),
        pytest.param(_taking(shape=(None, 1, 4, 4)), r"takes .+\(any, 1, 4, 4\)", id="channels"),
        pytest.param(
            _program(lambda model, images: model(images), _images(), "predict"),
            "no signature 'serving_default'; found 'predict'.+model.export",
            id="signature",
        ),
        pytest.param(
            _giving(scores=tf.identity, best=tf.argmax),
            r"gives 2 outputs, 'best' int64 .+, 'scores' float32 \(any, 3\);.+ called 'logits'",
            id="outputs",
        ),
        pytest.param(
            _giving(classes=lambda logits: tf.argmax(logits, -1)),
            r"gives 'classes' int64 \(any,\); expected float32 logits",
            id="labels",
        ),
        pytest.param(
            _giving(half=lambda logits: tf.cast(logits, tf.float16)),
            "gives 'half' float16 .+ expected float32 logits",
            id="rounded",
        ),
    ],
)
def test_what_is_no_such_model_is_refused_in_one_line(tmp_path, prepare, message):
    prepare(tmp_path / "model")
    with pytest.raises(SfmError, match=message) as caught:
        load_classifier(tmp_path / "model", SHAPE, 3)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def _functional(outputs, dtype="float32", shape=SHAPE, count=1):
    inputs = [keras.Input(shape, dtype=dtype, name=f"images_{place}") for place in range(count)]
    flat = [keras.layers.Flatten()(keras.layers.Rescaling(1.0)(each)) for each in inputs]
    values = keras.layers.Add()(flat) if count > 1 else flat[0]
    return keras.Model(inputs[0] if count == 1 else inputs, outputs(values))


def _two_outputs(values):
    return [keras.layers.Dense(3, name=name)(values) for name in ("first", "second")]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(
            lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)]),
            "lacks weights, because the model was saved before it was built",
            id="unbuilt",
        ),
        pytest.param(
            lambda: Subclassed(name="lazy"), "lacks weights, because .+ before it was", id="lazy"
        ),
        pytest.param(
            lambda: _functional(keras.layers.Dense(3), "uint8"),
            r"takes 'images_0' uint8 \(any, 4, 4, 1\); expected float32 images",
            id="uint8",
        ),
        pytest.param(
            lambda: _functional(keras.layers.Dense(3), shape=(4, 4, 3)),
            r"takes .+\(any, 4, 4, 3\); expected batches of \(4, 4, 1\)",
            id="colour",
        ),
        pytest.param(
            lambda: _functional(keras.layers.Dense(3), count=2),
            "takes 2 inputs, 'images_0' .+; expected one, a batch of images",
            id="inputs",
        ),
        pytest.param(
            lambda: _functional(_two_outputs),
            r"gives 2 outputs, 'first' float32 \(any, 3\), 'second'",
            id="outputs",
        ),
        pytest.param(
            lambda: _functional(keras.layers.Dense(3, dtype="float16")),
            "gives .+ float16 .+; expected float32 logits",
            id="half",
        ),
    ],
)
def test_a_keras_model_that_would_be_evaluated_wrongly_is_refused(tmp_path, model, message):
    model().save(tmp_path / "model.keras")
    with pytest.raises(SfmError, match=message) as caught:
        load_classifier(tmp_path / "model.keras", SHAPE, 3)
    assert "\n" not in str(caught.value)


def test_the_output_that_is_called_logits_is_taken_from_keras_models_as_well(tmp_path):
    def outputs(values):
        return {"features": values, "logits": keras.layers.Dense(3)(values)}

    model = _functional(outputs)
    model.save(tmp_path / "model.keras")
    loaded = load_classifier(tmp_path / "model.keras", SHAPE, 3)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES)["logits"], rtol=1e-6)


@keras.saving.register_keras_serializable(package="imported_model_test")
class Blocks(keras.Model):
    """A model of layers in lists of lists, of which Keras only warns where the file lacks them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [[keras.layers.Flatten()], [keras.layers.Dense(3)]]

    def call(self, images):
        for layers in self.blocks:
            for layer in layers:
                images = layer(images)
        return images


def test_weights_that_a_file_lacks_are_not_left_at_random(tmp_path):
    whole, lacking = tmp_path / "whole.keras", tmp_path / "lacking.keras"
    model = Blocks()
    model(IMAGES)
    model.save(whole)
    np.testing.assert_allclose(load_classifier(whole, SHAPE, 3)(IMAGES), model(IMAGES), rtol=1e-5)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(lacking, "w") as copy:
        for name in source.namelist():
            content = io.BytesIO(source.read(name))
            if name.endswith(".h5"):
                with h5py.File(content, "r+") as weights:
                    del weights["blocks/container_1"]
            copy.writestr(name, content.getvalue())
    with pytest.raises(SfmError, match=r"Cannot read .+lacks weights"):
        load_classifier(lacking, SHAPE, 3)


@keras.saving.register_keras_serializable(package="imported_model_test")
class OwnLayer(keras.layers.Layer):
    def call(self, values):
        return values


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        pytest.param(lambda: keras.layers.Lambda(lambda v: v), "a Lambda layer", id="lambda"),
        pytest.param(OwnLayer, "the class OwnLayer", id="class"),
        pytest.param(
            lambda: keras.layers.Dense(4, activation=_cut), "the function _cut", id="function"
        ),
    ],
)
def test_code_in_a_file_is_named_with_the_call_that_exports_it(tmp_path, layer, code):
    _saved(tmp_path / "model.keras", layer())
    registered = keras.saving.get_custom_objects()
    known = registered.pop("imported_model_test>OwnLayer")
    try:
        with pytest.raises(SfmError, match=f"own: {code}.+`model.export") as caught:
            load_classifier(tmp_path / "model.keras", (2, 2, 1), 2)
    finally:
        registered["imported_model_test>OwnLayer"] = known
    assert "safe_mode" not in str(caught.value)


@keras.saving.register_keras_serializable(package="imported_model_test")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3)

    def call(self, images):
        return self.dense(keras.ops.reshape(images, (-1, 16)))


def test_a_model_need_not_know_its_shapes(tmp_path):
    subclassed = Subclassed()
    subclassed(IMAGES)
    any_size = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(3)]
    )
    for model in (subclassed, any_size):
        model.save(tmp_path / "model.keras")
        loaded = load_classifier(tmp_path / "model.keras", SHAPE, 3)
        assert (loaded.input_shape, loaded.output_shape) == ((None, *SHAPE), (None, 3))
        np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-5)


def test_a_model_is_the_same_however_many_were_loaded_before(tmp_path):
    for kind in ("keras", "exported"):
        path, _ = _imported_model_saved(kind, _classifier(), tmp_path)
        first, second = (model_digest(load_classifier(path, SHAPE, 3)) for _ in range(2))
        assert first == second


def test_a_model_of_other_images_is_refused(tmp_path):
    for kind in ("keras", "exported"):
        path, _ = _imported_model_saved(kind, _classifier(), tmp_path)
        with pytest.raises(SfmError, match=r"expected batches of \(5, 5, 1\)"):
            load_classifier(path, (5, 5, 1), 3)


def test_a_file_of_the_older_format_is_read_under_its_own_ending(tmp_path):
    model = _classifier()
    model.save(tmp_path / "model.h5")
    loaded = load_classifier(tmp_path / "model.h5", SHAPE, 3)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-6)
    (tmp_path / "model.h5").rename(tmp_path / "model.keras")
    with pytest.raises(SfmError, match=r"it is HDF5, .+ end in \.h5\); .+`model.export"):
        load_classifier(tmp_path / "model.keras", SHAPE, 3)
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(SfmError, match="it holds weights alone"):
        load_classifier(tmp_path / "model.weights.h5", SHAPE, 3)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(SfmError, match="Unknown kind of model .+`model.export"):
        load_classifier(tmp_path / "model.onnx", SHAPE, 3)
