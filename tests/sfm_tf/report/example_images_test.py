import io
import json
import statistics

import keras
import numpy as np
import PIL.Image
import pytest

from sfm_tf.attacks.attack import AttackOutcome
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.evaluation.results import join_results
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.report import example_images
from sfm_tf.report.charts import png, report_figure
from sfm_tf.report.example_images import (
    StoredAttacks,
    ablation_gallery,
    defence_gallery,
    failure_gallery,
    failure_table,
    find_failures,
    image_grid,
    mask_statistics,
    mask_table,
    perceive,
    perceived_gallery,
    perturbation_gallery,
)
from sfm_tf.report.inputs import FailureGallery, Gallery, PerceivedPerturbation, Perturbation
from tests import made_up

IMAGES = np.random.default_rng(0).random((3, 4, 4, 3)).astype(np.float32)
RED, GREEN = (np.full((1, 4, 4, 3), colour, np.float32) for colour in ((1, 0, 0), (0, 1, 0)))


def _drawn(rows, captions=()) -> np.ndarray:
    figure = report_figure("grid", "", "", image_grid(rows, captions))
    return np.asarray(PIL.Image.open(io.BytesIO(png(figure.svg()))).convert("RGB"))


def _colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere(np.all(pixels == colour, axis=-1))


def test_rows_are_one_below_the_other_and_columns_side_by_side():
    images = np.concatenate([RED, GREEN])
    pixels = _drawn({"first": images, "second": images[::-1]})
    red, green = _colour(pixels, (255, 0, 0)), _colour(pixels, (0, 255, 0))
    middle = pixels.shape[0] / 2
    above, below = ([c[(c[:, 0] < middle) == up] for c in (red, green)] for up in (True, False))
    assert above[0][:, 1].max() < above[1][:, 1].min()
    assert below[1][:, 1].max() < below[0][:, 1].min()


def test_grey_stands_beside_colour_and_what_is_beyond_is_black_or_white():
    pixels = _drawn({"mask": 7.0 - 14.0 * RED[..., :1], "image": 9.0 * RED})
    assert len(_colour(pixels, (0, 0, 0))) > 100 * 100
    assert len(_colour(pixels, (255, 0, 0))) > 100 * 100


def test_more_columns_than_fit_continue_below_with_their_captions():
    captions = [(f"number {n}",) for n in range(11)]
    bands = image_grid({"one": np.repeat(RED, 11, axis=0)}, captions).to_dict()["vconcat"]
    assert len(bands) == 2
    few, many = (_drawn({"one": np.repeat(RED, count, axis=0)}) for count in (8, 11))
    assert 1.8 < many.shape[0] / few.shape[0] < 2.2


def test_a_uniform_difference_of_half_the_radius_is_three_quarters_grey():
    images = np.full((1, 8, 8, 1), 0.25, np.float32)
    shown = Perturbation("white_box", "pgd", 16.0, images, images + np.float32(8 / 255))
    figure = perturbation_gallery("pgd", "PGD", shown)
    # 255 / (2 * 16) = 8.0 takes the whole ball to the whole range of a pixel.
    assert "multiplied by 8.0 around mid-grey" in figure.caption
    assert figure.alternative_text.endswith("The difference is at most 8.0/255.")
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png(figure.svg()))).convert("L"))
    assert np.mean(np.abs(pixels.astype(int) - 191) <= 1) > 0.05


def test_the_mean_of_the_masks_is_told():
    assert "mean is 0.25" in defence_gallery("defence", _gallery(0.25)).alternative_text


def _gallery(mask: float) -> Gallery:
    masks = np.full((3, 4, 4, 1), mask, np.float32)
    return Gallery(IMAGES, masks, masks * IMAGES, masks * IMAGES)


def test_every_training_has_its_row_and_the_complete_one_comes_last():
    ablations = {"no semantic loss": _gallery(0.25), "no reconstruction loss": _gallery(0.0)}
    figure = ablation_gallery("ablations", _gallery(0.5), ablations)
    assert "no semantic loss, no reconstruction loss, and after the complete" in figure.caption
    assert figure.alternative_text.endswith(
        "no semantic loss 0.25, no reconstruction loss 0.00, complete 0.50."
    )


NAMES = ("cat", "dog", "fish")
LABELS = np.array([0, 1, 0])
# 0.05 itself is not removed.
MASKS = np.array(
    [[[0.0, 1.0], [0.5, 0.5]], [[0.05, 0.05], [0.04, 0.04]], [[1.0, 1.0], [1.0, 1.0]]], np.float64
)[..., None]


def test_figures_of_all_masks_by_hand():
    found = mask_statistics(MASKS, LABELS, NAMES)
    values = MASKS.ravel().tolist()
    assert found["examples"] == 3
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["standard_deviation"] == pytest.approx(statistics.pstdev(values))
    assert found["zero_share"] == pytest.approx(3 / 12)
    assert found["image_deviation"] == pytest.approx(statistics.pstdev([0.5, 0.045, 1.0]))


def test_each_class_has_its_own_and_one_without_images_none():
    cat, dog, fish = mask_statistics(MASKS, LABELS, NAMES)["per_class"]
    assert (cat["class"], cat["examples"], cat["mean"]) == ("cat", 2, pytest.approx(0.75))
    assert (dog["mean"], dog["zero_share"]) == (pytest.approx(0.045), 0.5)
    assert fish == {
        "class": "fish",
        "examples": 0,
        "mean": None,
        "standard_deviation": None,
        "zero_share": None,
        "image_deviation": None,
    }


def test_the_table_has_a_row_for_all_and_each_class_and_no_empty_cell():
    table = mask_table(mask_statistics(MASKS, LABELS, NAMES))
    rows = {row.label: [cell.value for cell in row.cells] for row in table.rows}
    assert list(rows) == ["all", *NAMES]
    assert rows["cat"] == ["2", "0.750", "12.5%", "0.354", "0.250"]
    assert rows["fish"] == ["0", *["no image"] * 4]


def test_json_can_hold_them():
    found = mask_statistics(MASKS.astype(np.float32), LABELS, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


CLEAN_IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
ADVERSARIAL = np.clip(CLEAN_IMAGES + 0.125, 0.0, 1.0).astype(np.float32)
PERTURBATION = Perturbation("white_box", "pgd", 8.0, CLEAN_IMAGES, ADVERSARIAL)


def _defended() -> DefendedModel:
    """Its mask is the mean of the channels, its T a bit depth of 2."""
    inputs = keras.Input((4, 4, 3))
    mask = keras.layers.Conv2D(1, 1, kernel_initializer=keras.initializers.Constant(1 / 3))
    masker = keras.Model(inputs, mask(inputs))
    classifier = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_2"))


def _squeeze(images):
    return np.rint(images * 3) / 3


def test_differences_are_those_of_the_formulas():
    found = perceive(_defended(), PERTURBATION)
    np.testing.assert_allclose(found.undefended, ADVERSARIAL - CLEAN_IMAGES, atol=1e-6)
    expected = _squeeze(ADVERSARIAL) - _squeeze(CLEAN_IMAGES)
    np.testing.assert_allclose(found.preprocessed, expected, atol=1e-6)
    masked = [
        images * images.mean(axis=-1, keepdims=True) for images in (CLEAN_IMAGES, ADVERSARIAL)
    ]
    expected = _squeeze(masked[1]) - _squeeze(masked[0])
    np.testing.assert_allclose(found.defended, expected, atol=1e-6)
    assert found.attacked is PERTURBATION
    assert not found.is_random


def test_the_figure_states_its_scale_and_the_mean_sizes():
    change = np.full((2, 4, 4, 3), 0.125, np.float32)
    perceived = PerceivedPerturbation(PERTURBATION, change, 2 * change, 0 * change)
    figure = perceived_gallery("perceived", "PGD, white box", perceived)
    assert "PGD, white box, ε = 8/255 in L∞" in figure.caption
    # 0.125 * 4 takes the largest change to white.
    assert "multiplied by 4.0 around mid-grey" in figure.caption
    assert figure.alternative_text.endswith(
        "no defence 31.88/255, pre-processing 63.75/255, masker and pre-processing 0.00/255."
    )


def test_no_perturbation_and_a_defence_that_draws_are_drawn_too():
    nothing = np.zeros((2, 4, 4, 3), np.float32)
    perceived = PerceivedPerturbation(PERTURBATION, nothing, nothing, nothing, is_random=True)
    figure = perceived_gallery("perceived", "PGD", perceived, "2")
    assert "in L2" in figure.caption
    assert figure.caption.endswith("T draws, so part of its differences is chance.")


TWO_NAMES = ("cat", "dog")
TRUE_LABELS = np.array([0, 0, 1, 1])
CLEAN = np.array([0, 0, 1, 0])  # The last image is wrong to begin with.


def rows(attack, epsilon, prediction, linf, loss, threat_model="white_box", defence="sfm"):
    names = defence, threat_model, attack, epsilon
    sizes = {"linf": np.array(linf) / 255, "l2": 1.0 - np.array(linf) / 255, "loss": loss}
    return made_up.answers(*names, TRUE_LABELS, CLEAN, prediction, **sizes)


RESULTS = join_results(
    [
        rows("clean", 0.0, CLEAN, 0.0, 9.0, "none"),
        rows("fgsm", 8.0, [1, 0, 0, 0], [8, 8, 8, 8], [2.0, 9.0, 5.0, 9.0]),
        # The rounding of float32 is no smaller perturbation.
        rows("pgd", 8.0, [1, 0, 0, 0], [8.0001, 8, 7.9999, 8], [3.0, 9.0, 4.0, 9.0]),
        rows("pgd", 4.0, [0, 1, 1, 0], [4, 4, 4, 4], [1.0, 1.0, 1.0, 9.0], "gray_box"),
        rows("cw", np.inf, [1, 1, 0, 1], [1, 1, 1, 1], 9.0),
        rows("pgd", 8.0, [1, 1, 0, 1], [1, 1, 1, 1], 9.0, defence="undefended"),
    ]
)


def test_smallest_perturbations_come_first_then_the_highest_loss():
    found = find_failures(RESULTS, "sfm", "inf", TWO_NAMES, 5)
    assert [(f["image_index"], f["attack"], f["size"], f["loss"]) for f in found] == [
        (1, "pgd", 4.0, 1.0),
        (2, "fgsm", 8.0, 5.0),
        (0, "pgd", 8.0, 3.0),
    ]
    assert found[0]["threat_model"] == "gray_box"
    assert found[0]["epsilon"] == 4.0
    assert [(f["label"], f["prediction"]) for f in found] == [
        ("cat", "dog"),
        ("dog", "cat"),
        ("cat", "dog"),
    ]


def test_no_more_than_asked_for_and_by_the_norm_that_bounds():
    (found,) = find_failures(RESULTS, "sfm", "2", TWO_NAMES, 1)
    assert found["attack"] in ("pgd", "fgsm")
    assert found["size"] == pytest.approx(255 - 8, abs=0.01)


def test_nothing_that_went_wrong_is_no_failure():
    assert find_failures(RESULTS, "tvm", "inf", TWO_NAMES, 5) == []


def test_the_table_names_the_attack_that_won():
    found = find_failures(RESULTS, "sfm", "inf", TWO_NAMES, 2)
    names = {"white_box": "white box", "gray_box": "gray box"}
    table = failure_table(found, names, "inf")
    assert table.columns[-2:] == ("L∞ in 1/255", "loss")
    assert made_up.cells(table) == {
        "number 1": ["cat", "dog", "PGD, gray box", "4/255", "4.00", "1"],
        "number 2": ["dog", "cat", "FGSM, white box", "8/255", "8.00", "5"],
    }


def test_the_figure_says_what_each_image_is_taken_for_and_how_it_is_magnified():
    found = find_failures(RESULTS, "sfm", "inf", TWO_NAMES, 2)
    images = np.full((2, 4, 4, 1), 0.5, np.float32)
    figure = failure_gallery("failures", FailureGallery(found, images, images + np.float32(0.125)))
    assert "multiplied by 4.0 around mid-grey" in figure.caption
    assert figure.alternative_text.endswith(
        "cat taken for dog after PGD; dog taken for cat after FGSM."
    )


SHOWN = np.random.default_rng(0).random((6, 4, 4, 1)).astype(np.float32)
SETTINGS = EvaluationConfig(epsilons=(4.0, 8.0), decision_examples=2)


def _made(number: int) -> np.ndarray:
    return np.full_like(SHOWN, number / 16)


def _stored(folder, sets) -> StoredAttacks:
    """Stores an outcome for each set, the images of the n-th all n/16."""
    store = AdversarialStore(folder)
    for number, entry in enumerate(sets):
        count = 2 if entry.attack == "hop_skip_jump" else len(SHOWN)
        zeros = np.zeros(count, np.int32)
        images = _made(number)[:count]
        outcome = AttackOutcome(images, zeros.astype(np.float32), zeros, zeros.astype(bool))
        store.write(entry.name, outcome)
    store.write_index(sets)
    return StoredAttacks(store, "sfm", SETTINGS, SHOWN)


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
    gallery = example_images.defence_images(defended, images)
    masks = example_images.masks_of(defended, images)
    np.testing.assert_allclose(masks, gallery.masks, atol=1e-6)
    np.testing.assert_allclose(gallery.masked, masks * images, atol=1e-6)


def test_each_threat_model_shows_its_last_attack_at_the_largest_radius(tmp_path):
    stored = _stored(tmp_path, SETS)
    white, decisions = stored.last_attacks(3)
    assert (white.threat_model, white.attack, white.epsilon) == ("white_box", "pgd", 8.0)
    np.testing.assert_array_equal(white.images, SHOWN[:3])
    np.testing.assert_array_equal(white.adversarial_images, _made(5)[:3])
    # It was given two images only.
    assert decisions.attack == "hop_skip_jump"
    np.testing.assert_array_equal(decisions.images, SHOWN[:2])
    np.testing.assert_array_equal(decisions.adversarial_images, _made(7)[:2])


def test_who_knows_most_is_the_white_box_with_pgd_at_the_smallest_radius(tmp_path):
    stored = _stored(tmp_path, SETS)
    found = stored.strongest_knowledge(4)
    assert (found.threat_model, found.attack, found.epsilon) == ("white_box", "pgd", 4.0)
    np.testing.assert_array_equal(found.adversarial_images, _made(2)[:4])


def test_without_a_white_box_it_is_the_gray_box_and_else_nobody(tmp_path):
    stored = _stored(tmp_path / "gray", SETS[:1])
    found = stored.strongest_knowledge(4)
    assert found.threat_model == "gray_box"
    stored = _stored(tmp_path / "none", SETS[4:])
    assert stored.strongest_knowledge(4) is None


def _failure(image_index, threat_model, attack, epsilon):
    return {
        "image_index": image_index,
        "threat_model": threat_model,
        "attack": attack,
        "epsilon": epsilon,
    }


def test_a_failure_has_the_images_of_the_attack_that_won(tmp_path):
    stored = _stored(tmp_path, SETS)
    failures = [
        _failure(4, "white_box", "mim", 4.0),
        _failure(1, "decision_based", "hop_skip_jump", 8.0),
        # Stored under no radius, because it finds its own.
        _failure(5, "white_box", "cw", 8.0),
    ]
    found = stored.of_failures(failures)
    np.testing.assert_array_equal(found.images, SHOWN[[4, 1, 5]])
    for number, images in zip((3, 7, 6), found.adversarial_images, strict=True):
        np.testing.assert_array_equal(images, _made(number)[0])


def test_no_failure_has_no_images(tmp_path):
    found = _stored(tmp_path, SETS).of_failures([])
    assert found.images.shape == found.adversarial_images.shape == (0, 4, 4, 1)


def test_a_deleted_set_says_what_to_do(tmp_path):
    stored = _stored(tmp_path, SETS[:1])
    stored.store.path(SETS[0].name).unlink()
    with pytest.raises(SfmError, match="is gone; run the evaluation with --force"):
        stored.strongest_knowledge(4)
