import pytest

from sfm_tf.report.ablation_table import ablation_table

COMPLETE = {
    "words": "complete",
    "clean": 0.9,
    "black_box": 0.5,
    "gray_box": None,
    "examples": 1000,
    "epsilon": 8.0,
    "mask_mean": 0.5,
    "mask_spread": 0.25,
    "collapse": "",
    "failure": "",
}
ZEROS = {
    **COMPLETE,
    "words": "no reconstruction loss",
    "clean": 0.1,
    "collapse": "The mask collapsed to zeros (mean 0.001, spread 0.000): raise semantic_weight.",
}
FAILED = {
    **dict.fromkeys(COMPLETE),
    "words": "no semantic loss",
    "failure": "mask_loss became nan.",
    "collapse": "",
}


def test_every_training_has_its_accuracies_and_its_masks():
    table = ablation_table([COMPLETE, ZEROS])
    assert "on 1,000 validation images, clean and under PGD at 8/255" in table.title
    complete, zeros = table.rows
    assert complete.label == "complete"
    # Wilson's interval of 900 and of 500 in 1,000.
    assert [str(cell) for cell in complete.cells] == [
        "90.0% (88.0–91.7)",
        "50.0% (46.9–53.1)",
        "not run",
        "0.500",
        "0.250",
    ]
    assert str(zeros.cells[3]) == "0.500, The mask collapsed to zeros"


def test_a_training_that_failed_says_why_and_has_no_figures():
    (row,) = ablation_table([FAILED]).rows
    assert [str(cell) for cell in row.cells] == ["failed, mask_loss became nan.", *["not run"] * 4]
    assert len(row.cells) == len(ablation_table([FAILED]).columns) - 1


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
