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


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "No model"),
        (lambda path: path.mkdir(), "is no SavedModel; expected saved_model.pb"),
        (lambda path: _classifier(4).export(path, verbose=False), r"to \(4,\); expected"),
        (lambda path: Answers(_classifier(), ["a", "b"]).save(path), "to 'logits' among several"),
    ],
)
def test_what_is_no_such_model_is_refused_in_one_line(tmp_path, prepare, message):
    prepare(tmp_path / "model")
    with pytest.raises(SfmError, match=message) as caught:
        load_classifier(tmp_path / "model", SHAPE, 3)
    assert "\n" not in str(caught.value)


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
        with pytest.raises(SfmError, match=r"expected \(5, 5, 1\)|not take images of \(5, 5, 1\)"):
            load_classifier(path, (5, 5, 1), 3)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"not a model")
    with pytest.raises(SfmError, match="Unknown kind of model"):
        load_classifier(tmp_path / "model.h5", SHAPE, 3)
