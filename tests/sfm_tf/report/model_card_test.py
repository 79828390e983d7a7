"""The card is read as its readers read it, and compared with figures worked out by hand."""

import dataclasses
import html
import json
import re

import pytest

from sfm_tf.audit.blessing import decide
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.collection import collect_card_inputs
from sfm_tf.report.inputs import Audit, ReportInputs
from sfm_tf.report.model_card import build_model_card
from tests import made_up

HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&\n# e"
COMMAND = "python -m pipelines.run --experiment=cifar10 --preprocessor='a|b' --seed=3"
NONE, ONE, TWO, THREE, _ = made_up.OF_FOUR


def card_inputs(*threat_models: str) -> ReportInputs:
    evaluation = EvaluationConfig(
        threat_models=threat_models, epsilons=(8.0, 16.0), iterations=17, attacks=("fgsm", "pgd")
    )
    metrics = summarise(made_up.four_images(*threat_models))
    split = {"count": 7, "exact_duplicates": 0, "class_counts": {HOSTILE: 4, "dog": 3}}
    return ReportInputs(
        experiment="cifar10",
        dataset=HOSTILE,
        statistics={"test": split},
        class_counts={HOSTILE: 2, "dog": 2},
        evaluation=evaluation,
        metrics=metrics,
        blessing=decide(metrics, evaluation),
        history={},
        manifests=[
            made_up.manifest("train", {"model": {"classifier": "resnet18", "masker_depth": 4}}, 1),
            made_up.manifest("evaluate", {"evaluation": {"iterations": 17}}, 3),
        ],
        gallery=None,
    )


def card(*threat_models: str) -> str:
    return build_model_card(card_inputs(*threat_models), (32, 32, 3), COMMAND)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def table(section: str, title: str) -> dict[str, list[str]]:
    """Returns the cells of the rows of a table by the row's label, the head's under `head`."""
    lines = section.split(f"{title}\n\n", 1)[1].split("\n\n")[0].splitlines()
    cells = [[html.unescape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    head, _, *body = cells
    return {"head": head[1:], **{label: values for label, *values in body}}


def test_the_worst_case_stands_with_interval_and_attack_for_each_threat_model_and_radius():
    under_attack = sections(card("black_box", "white_box"))["Accuracy under attack"]
    found = table(under_attack, "Accuracy after the worst attack per image, SFM-Defence")
    assert found["head"] == ["8/255", "16/255", "all radii"]
    # FGSM and PGD leave images 0 and 2 right in the black box, at 16 only image 2.
    black_box = [f"{TWO}, PGD", f"{ONE}, PGD", f"{ONE}, PGD"]
    assert found["black box"] == black_box
    assert found["white box"] == [f"{NONE}, PGD", "not run", f"{NONE}, PGD"]
    assert found["gray box"] == ["not run"] * 3


def test_clean_accuracies_stand_with_their_intervals():
    clean = sections(card("white_box"))["Clean accuracy"]
    found = table(clean, "Accuracy without an attack, with its 95% interval")
    assert found["no defence"] == found["SFM-Defence"] == [THREE]


def test_the_verdict_comes_first_with_its_reasons():
    inputs = card_inputs("black_box", "white_box")
    lines = [line for line in card("black_box", "white_box").splitlines() if line]
    assert lines[1].startswith("**NOT BLESSED.** The model is not blessed: it is right on 75.0% of")
    assert [line.removeprefix("- ") for line in lines[2 : 2 + len(inputs.blessing.reasons)]] == [
        *inputs.blessing.reasons
    ]


def test_without_the_white_box_the_first_lines_and_the_first_limitation_say_so():
    text = card("black_box")
    assert "white box was not run" in [line for line in text.splitlines() if line][2]
    first = sections(text)["Limitations"].strip().splitlines()[0]
    assert first.startswith("- The white box was not run")
    with_it = sections(card("white_box"))["Limitations"]
    assert "white box" not in with_it.lower()
    assert "- Not run: black box." in with_it


def test_the_audit_is_told_beside_the_verdict():
    assert "The evaluation was not audited" in sections(card("white_box"))[""]
    verdict = AuditVerdict("not_credible", "1 of 9 checks that must pass failed: Growth (failed).")
    inputs = dataclasses.replace(card_inputs("white_box"), audit=Audit((), verdict))
    text = sections(build_model_card(inputs, (32, 32, 3), COMMAND))[""]
    assert "Audit of the evaluation: Not credible." in text
    assert "this evaluation is not credible according to the audit" in text


def test_a_threat_model_tried_on_fewer_images_is_a_limitation():
    with_all = sections(card("white_box"))["Limitations"]
    assert "Only the first" not in with_all
    limitations = sections(card("white_box", "decision_based"))["Limitations"]
    assert "- Only the first 2 of 4 images were attacked: decision-based." in limitations


def test_settings_versions_and_fingerprints_are_all_there():
    text = sections(card("white_box"))
    settings = table(text["Attacks"], "All settings of the evaluation")
    assert settings["iterations"] == ["17"]
    assert settings["seed"] == ["3"]
    assert json.loads(settings["epsilons"][0]) == [8.0, 16.0]
    built = table(text["Model details"], "How it was built and trained")
    assert (built["classifier"], built["masker_depth"]) == (['"resnet18"'], ["4"])
    made = table(text["Versions and fingerprints"], "What made it")
    assert made["train"][:3] == ["cd" * 32, "0" * 64, "1"]
    assert table(text["Versions and fingerprints"], "Packages")["keras"] == ["3.15.1"]


def test_the_command_can_be_copied_as_it_is():
    assert sections(card("white_box"))["How to reproduce"].strip("\n") == f"    {COMMAND}"


def test_names_are_shown_but_are_no_mark_up():
    text = card("white_box")
    data = table(sections(text)["Data"], "Test images of each class")
    assert data[HOSTILE.replace("\n", " ")] == ["2", "4"]
    assert data["dog"] == ["2", "3"]
    assert "<" not in text
    assert "# e" not in [line.strip() for line in text.splitlines()]


def test_a_stored_evaluation_has_all_that_a_card_shows(records, models, evaluation):
    inputs = collect_card_inputs("digits", {"ingest": records, "train": models}, evaluation)
    assert sum(inputs.class_counts.values()) == 12
    text = sections(build_model_card(inputs, (8, 8, 1), "make demo"))
    assert "8 x 8 x 1" in text["Model details"]
    made = table(text["Versions and fingerprints"], "What made it")
    for artifact in (records, models, evaluation):
        assert made[artifact.manifest.stage][0] == artifact.manifest.fingerprint


def test_the_card_of_ones_own_model_has_its_name_and_nothing_of_how_another_was_trained():
    inputs = card_inputs("white_box")
    own = dataclasses.replace(inputs.evaluation, model="/home/alice/models/cnn_v2.keras")
    inputs = dataclasses.replace(inputs, evaluation=own)
    text = build_model_card(inputs, (8, 8, 1), COMMAND)
    assert text.startswith("# Model card: cnn_v2 on ")
    details = sections(text)["Model details"]
    assert "evaluated as cnn_v2.keras. It takes images of" in " ".join(details.split())
    assert "masker" not in details
    assert "alice" not in text


@pytest.mark.parametrize(
    ("draws", "told"),
    [
        ("keyed", "by a hash of the image with a secret key"),
        ("fresh", "afresh at each request"),
        (None, None),
    ],
)
def test_it_says_how_the_served_model_draws_if_it_does(draws, told):
    text = build_model_card(card_inputs("white_box"), (8, 8, 1), "make demo", draws)
    found = [line for line in text.splitlines() if "draws at random" in line]
    assert len(found) == (told is not None)
    assert all(told in line for line in found)
