"""Tests of the adding up of seconds."""

import pytest

from sfm_tf.training.timing import defence_timing, split_seconds


def _epoch(**seconds):
    return {"stage": "alternation", "training": {}, "validation": {}, "seconds": seconds}


def test_seconds_are_added_up_by_what_was_trained_and_taken_out():
    history = [_epoch(classifier=1.5), _epoch(classifier=2.0, masker=4.0), _epoch(masker=1.0)]
    lasting, seconds = split_seconds(history)
    assert seconds == {"classifier": 3.5, "masker": 5.0}
    assert lasting == [{"stage": "alternation", "training": {}, "validation": {}}] * 3
    assert "seconds" in history[0]


def test_epochs_that_train_both_at_once_are_a_part_of_their_own():
    assert split_seconds([_epoch(classifier=1.0), _epoch(both=2.5)])[1] == {
        "classifier": 1.0,
        "both": 2.5,
    }


@pytest.mark.parametrize(
    ("defence", "expected"),
    [
        ({"classifier": 3.0, "masker": 5.0}, {"classifier_seconds": 3.0, "masker_seconds": 5.0}),
        (
            {"classifier": 3.0, "both": 7.0},
            {"classifier_seconds": 3.0, "masker_seconds": 0.0, "both_seconds": 7.0},
        ),
    ],
)
def test_timing_names_the_parts_of_the_train_stage(defence, expected):
    timing = defence_timing(defence, {"classifier": 2.0})
    assert timing == {**expected, "source_seconds": 2.0}


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
