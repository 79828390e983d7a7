import pytest

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.errors import SfmError
from sfm_tf.tuning.best import choose_best, sparsity_curve, tuned_values


def trial(sparsity, clean, black_box, **changes):
    return {
        "sparsity_weight": sparsity,
        "semantic_weight": 20.0,
        "reconstruction_weight": 1.0,
        "rho": 8 * sparsity,
        "epochs": 4,
        "clean": clean,
        "black_box": black_box,
        "gray_box": None,
        "examples": 100,
        "epsilon": 8.0,
        "collapse": "",
        "failure": "",
        **changes,
    }


FAILED = trial(0.9, None, None, failure="mask_loss became nan in step 3.")


def test_the_sum_of_clean_and_black_box_accuracy_wins():
    best = choose_best([trial(0.1, 0.9, 0.5), trial(0.2, 0.8, 0.7), trial(0.3, 0.7, 0.7)])
    assert best["values"] == {
        "sparsity_weight": 0.2,
        "semantic_weight": 20.0,
        "reconstruction_weight": 1.0,
    }
    assert best["objective"] == pytest.approx(1.5)
    assert best["rho"] == pytest.approx(1.6)


def test_a_collapsed_mask_wins_only_among_its_like():
    ones, zeros = (
        trial(0.1, 0.9, 0.9, collapse="The mask collapsed to ones."),
        trial(0.5, 0.1, 0.1, collapse="The mask collapsed to zeros."),
    )
    best = choose_best([ones, trial(0.2, 0.8, 0.7), zeros])
    assert (best["sparsity_weight"], best["collapsed_above"]) == (0.2, 1)
    best = choose_best([zeros, ones])
    assert (best["sparsity_weight"], best["collapsed_above"]) == (0.1, 0)
    assert best["collapse"] == "The mask collapsed to ones."


def test_a_shorter_training_does_not_win():
    best = choose_best([trial(0.1, 0.9, 0.9, epochs=1), trial(0.2, 0.5, 0.5), FAILED])
    assert best["sparsity_weight"] == 0.2


def test_no_winner_where_all_failed():
    with pytest.raises(SfmError, match="All 2 trials failed; the first: mask_loss became nan"):
        choose_best([FAILED, FAILED])
    with pytest.raises(SfmError, match="All 0 trials failed; the first: none was run"):
        choose_best([])


def test_the_winning_weights_are_read_back(tmp_path):
    write_json(tmp_path / "best.json", choose_best([trial(0.2, 0.8, 0.7)]))
    assert tuned_values(tmp_path) == {
        "sparsity_weight": 0.2,
        "semantic_weight": 20.0,
        "reconstruction_weight": 1.0,
    }


def test_a_damaged_winner_says_what_to_do(tmp_path):
    with pytest.raises(SfmError, match="best.json.*run its stage again with --force"):
        tuned_values(tmp_path)
    write_json(tmp_path / "best.json", {"values": {"sparsity_weight": 0.2}})
    with pytest.raises(SfmError, match="run the tuning again with --force"):
        tuned_values(tmp_path)


def test_figure_3_has_the_other_weights_of_the_winner(tmp_path):
    trials = [
        trial(0.3, 0.7, 0.6),
        trial(0.1, 0.9, 0.5),
        trial(0.1, 0.2, 0.2, semantic_weight=5.0),
        trial(0.2, 0.2, 0.2, epochs=1),
        FAILED,
    ]
    write_json(tmp_path / "trials.json", {"trials": trials})
    write_json(tmp_path / "best.json", choose_best(trials))
    curve = sparsity_curve(tmp_path)
    assert [(point["sparsity_weight"], point["clean"]) for point in curve] == [
        (0.1, 0.9),
        (0.3, 0.7),
    ]
    assert {point["examples"] for point in curve} == {100}
