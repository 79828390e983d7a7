import pytest

from sfm_tf.report.training_section import training_section

EPOCHS = (
    {"stage": "pretraining", "training": {"classification_loss": 1.5}, "validation": {"x": 0.5}},
    {
        "stage": "alternation",
        "training": {"classification_loss": 1.0, "mask_loss": 2.0},
        "validation": {"mask_mean": 0.375},
    },
)
TUNING = [{"sparsity_weight": 0.01, "clean": 0.5, "black_box": 0.5, "gray_box": 0.25}]


def test_curves_are_those_that_were_measured():
    section = training_section({"defence": EPOCHS})
    (figure,) = section.figures
    assert figure.alternative_text == (
        "Curves over the epochs; last values: classification loss (training) 1, "
        "mask loss (training) 2, mask mean (validation) 0.375."
    )
    assert section.paragraphs[0].startswith("No tuning was run")


def test_the_table_has_the_last_values():
    (table,) = training_section({"defence": EPOCHS}).tables
    assert [(row.label, *map(str, row.cells)) for row in table.rows] == [("mask mean", "0.375")]


def test_a_tuning_is_drawn():
    section = training_section({"defence": EPOCHS}, TUNING)
    assert [figure.name for figure in section.figures] == ["training", "tuning"]
    assert section.paragraphs == ()


def test_a_tuning_says_what_it_was_scored_on_and_where_the_mask_collapsed():
    known = [
        {**TUNING[0], "examples": 1000, "epsilon": 8.0, "collapse": ""},
        {**TUNING[0], "sparsity_weight": 0.5, "collapse": "The mask collapsed to zeros."},
    ]
    assert training_section({"defence": EPOCHS}, known).paragraphs == (
        "Trials of the tuning were scored on 1,000 validation images, under PGD at 8/255 in L∞.",
        "The mask collapsed in the trials with w₁ of 0.5.",
    )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
