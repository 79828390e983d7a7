import keras
import numpy as np
import pytest

from sfm_tf.attacks.compiled_attack import AttackOutcome
from sfm_tf.config import EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.report import shown_images

IMAGES = np.random.default_rng(0).random((6, 4, 4, 1)).astype(np.float32)
SETTINGS = EvaluationConfig(epsilons=(4.0, 8.0), decision_examples=2)


def _made(number: int) -> np.ndarray:
    return np.full_like(IMAGES, number / 16)


def _store(folder, sets) -> AdversarialStore:
    """Stores an outcome for each set, the images of the n-th all n/16."""
    store = AdversarialStore(folder)
    for number, entry in enumerate(sets):
        count = 2 if entry.attack == "hop_skip_jump" else len(IMAGES)
        zeros = np.zeros(count, np.int32)
        images = _made(number)[:count]
        outcome = AttackOutcome(images, zeros.astype(np.float32), zeros, zeros.astype(bool))
        store.write(entry.name, outcome)
    store.write_index(sets)
    return store


def _set(threat_model, attack, epsilon, defence="sfm"):
    name = f"{defence}-{threat_model}-{attack}-{epsilon}"
    return StoredSet(defence, threat_model, attack, epsilon, name)


SETS = [
    _set("gray_box", "pgd", 4.0),
    _set("white_box", "fgsm", 4.0),
    _set("white_box", "pgd", 4.0),
    _set("white_box", "mim", 4.0),
    _set("white_box", "fgsm", 8.0),
    _set("white_box", "pgd", 8.0),
    _set("white_box", "cw", None),
    _set("decision_based", "hop_skip_jump", 8.0),
    _set("white_box", "pgd", 4.0, "undefended"),
]


def test_masks_in_batches_are_those_of_all_images_at_once():
    inputs = keras.Input((4, 4, 1))
    masker = keras.Model(
        inputs, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs)
    )
    defended = DefendedModel(keras.Sequential([inputs, keras.layers.Flatten()]), masker)
    images = np.random.default_rng(1).random((70, 4, 4, 1)).astype(np.float32)
    gallery = shown_images.defence_images(defended, images)
    masks = shown_images.masks_of(defended, images)
    np.testing.assert_allclose(masks, gallery.masks, atol=1e-6)
    np.testing.assert_allclose(gallery.masked, masks * images, atol=1e-6)


def test_each_threat_model_shows_its_last_attack_at_the_largest_radius(tmp_path):
    store = _store(tmp_path, SETS)
    white, decisions = shown_images.perturbations(store, "sfm", SETTINGS, IMAGES, 3)
    assert (white.threat_model, white.attack, white.epsilon) == ("white_box", "pgd", 8.0)
    np.testing.assert_array_equal(white.images, IMAGES[:3])
    np.testing.assert_array_equal(white.adversarial_images, _made(5)[:3])
    # It was given two images only.
    assert decisions.attack == "hop_skip_jump"
    np.testing.assert_array_equal(decisions.images, IMAGES[:2])
    np.testing.assert_array_equal(decisions.adversarial_images, _made(7)[:2])


def test_who_knows_most_is_the_white_box_with_pgd_at_the_smallest_radius(tmp_path):
    store = _store(tmp_path, SETS)
    found = shown_images.strongest_knowledge(store, "sfm", SETTINGS, IMAGES, 4)
    assert (found.threat_model, found.attack, found.epsilon) == ("white_box", "pgd", 4.0)
    np.testing.assert_array_equal(found.adversarial_images, _made(2)[:4])


def test_without_a_white_box_it_is_the_gray_box_and_else_nobody(tmp_path):
    store = _store(tmp_path / "gray", SETS[:1])
    found = shown_images.strongest_knowledge(store, "sfm", SETTINGS, IMAGES, 4)
    assert found.threat_model == "gray_box"
    store = _store(tmp_path / "none", SETS[4:])
    assert shown_images.strongest_knowledge(store, "sfm", SETTINGS, IMAGES, 4) is None


def _failure(image_index, threat_model, attack, epsilon):
    return {
        "image_index": image_index,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
    }


def test_a_failure_has_the_images_of_the_attack_that_won(tmp_path):
    store = _store(tmp_path, SETS)
    failures = [
        _failure(4, "white_box", "mim", 4.0),
        _failure(1, "decision_based", "hop_skip_jump", 8.0),
        # Stored under no radius, because it finds its own.
        _failure(5, "white_box", "cw", 8.0),
    ]
    found = shown_images.failure_images(store, "sfm", SETTINGS, IMAGES, failures)
    np.testing.assert_array_equal(found.images, IMAGES[[4, 1, 5]])
    for number, images in zip((3, 7, 6), found.adversarial_images, strict=True):
        np.testing.assert_array_equal(images, _made(number)[0])


def test_no_failure_has_no_images(tmp_path):
    found = shown_images.failure_images(_store(tmp_path, SETS), "sfm", SETTINGS, IMAGES, [])
    assert found.images.shape == found.adversarial_images.shape == (0, 4, 4, 1)


def test_a_deleted_set_says_what_to_do(tmp_path):
    store = _store(tmp_path, SETS[:1])
    store.path(SETS[0].name).unlink()
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        shown_images.strongest_knowledge(store, "sfm", SETTINGS, IMAGES, 4)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
