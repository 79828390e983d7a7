import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.compiled_attack import BatchOutcome, CompiledAttack
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_execution import AttackExecution, Standing
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.scoring import clean_outcome

SHAPE = (2, 2, 1)
COUNT = 10


class Shift(CompiledAttack):
    """Brightens images by a share of the radius that is drawn from their seeds."""

    killed_after = None
    fits = 4

    def _attack_batch(self, batch):
        self.sizes = [*getattr(self, "sizes", []), int(batch.images.shape[0])]
        if batch.images.shape[0] > self.fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        if self.killed_after is not None and len(self.sizes) > self.killed_after:
            raise KeyboardInterrupt
        share = tf.map_fn(
            lambda seed: tf.random.stateless_uniform((), seed),
            batch.seeds,
            fn_output_signature=tf.float32,
        )
        images = batch.images + self.epsilon * share[:, None, None, None]
        return BatchOutcome(images, share, batch.seeds[:, 1], share > 0.5)


def _model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


MODEL = _model()
SAMPLES = check_samples(
    np.random.default_rng(0).uniform(0.2, 0.8, (COUNT, *SHAPE)).astype(np.float32),
    np.arange(COUNT) % 3,
    MODEL,
)


def _attack(**changes):
    options = {"norm": "inf", "epsilon": 0.1, "targeted": False, "batch_size": 4, "seed": 1}
    return Shift(wrap_classifier(MODEL, 3, SHAPE, 4), **{**options, **changes})


def _execution(folder, attack, progress=lambda *_: None, **changes):
    fields = {"label": "shift-8", "phrase": "shift", "model_digest": "0", "samples": SAMPLES}
    store = AdversarialStore(folder)
    return AttackExecution(attack=attack, store=store, progress=progress, **{**fields, **changes})


def _is_equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(first))


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_attack_redoes_no_finished_batch_and_ends_the_same(tmp_path, killed_after):
    _, whole = _execution(tmp_path / "whole", _attack()).outcome()
    attack = _attack()
    attack.killed_after = killed_after
    with pytest.raises(KeyboardInterrupt):
        _execution(tmp_path / "killed", attack).outcome()
    again = _attack()
    _, resumed = _execution(tmp_path / "killed", again).outcome()
    assert len(again.sizes) == 3 - killed_after
    assert _is_equal(resumed, whole)


def test_a_finished_attack_is_read_back(tmp_path):
    name, outcome = _execution(tmp_path, _attack()).outcome()
    again = _attack()
    assert _execution(tmp_path, again).outcome()[0] == name
    assert _is_equal(_execution(tmp_path, again).outcome()[1], outcome)
    assert not hasattr(again, "sizes")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"epsilon": 0.2}, {}),
        ({"seed": 2}, {}),
        ({}, {"model_digest": "1"}),
        ({}, {"samples": SAMPLES.first(9)}),
    ],
)
def test_a_batch_of_another_attack_is_never_gone_on_with(tmp_path, options, changes):
    attack = _attack()
    attack.killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        _execution(tmp_path, attack).outcome()
    other = _attack(**options)
    _, outcome = _execution(tmp_path, other, **changes).outcome()
    assert len(other.sizes) == 3
    fresh = _execution(tmp_path / "fresh", _attack(**options), **changes).outcome()[1]
    assert _is_equal(outcome, fresh)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path):
    steps, attack = [], _attack(batch_size=8)
    attack.fits = 2
    _, outcome = _execution(tmp_path, attack, lambda *step: steps.append(step)).outcome()
    assert attack.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert [phrase for phrase, *_ in steps if "memory" in phrase] == [
        "shift: out of memory at batch 8, going on with 4",
        "shift: out of memory at batch 4, going on with 2",
    ]
    assert _is_equal(outcome, _execution(tmp_path / "whole", _attack()).outcome()[1])


def test_a_single_image_that_does_not_fit_is_an_error(tmp_path):
    attack = _attack()
    attack.fits = 0
    with pytest.raises(SfmError, match="Out of memory in shift with a single image"):
        _execution(tmp_path, attack).outcome()


def test_images_that_do_not_stand_are_left_as_they_are(tmp_path):
    clean = clean_outcome(wrap_classifier(MODEL, 3, SHAPE, 4), SAMPLES)
    rows = np.array([1, 2, 5, 7, 9])
    attack = _attack()
    _, outcome = _execution(tmp_path, attack).outcome(Standing("", clean, rows))
    assert attack.sizes == [4, 4]
    others = np.setdiff1d(np.arange(COUNT), rows)
    np.testing.assert_array_equal(outcome.images[others], SAMPLES.images[others])
    whole = _execution(tmp_path / "whole", _attack()).outcome()[1]
    np.testing.assert_array_equal(outcome.images[rows], whole.images[rows])


def test_nothing_is_attacked_where_nothing_stands(tmp_path):
    clean = clean_outcome(wrap_classifier(MODEL, 3, SHAPE, 4), SAMPLES)
    attack = _attack()
    _, outcome = _execution(tmp_path, attack).outcome(Standing("", clean, np.array([], int)))
    assert not hasattr(attack, "sizes")
    np.testing.assert_array_equal(outcome.images, SAMPLES.images)


def test_progress_counts_images(tmp_path):
    steps = []
    _execution(tmp_path, _attack(), lambda *step: steps.append(step)).outcome()
    assert steps == [("shift", done, COUNT) for done in (0, 4, 8, 10)]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
