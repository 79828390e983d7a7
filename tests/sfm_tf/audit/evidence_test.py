import dataclasses

import numpy as np
import pytest

from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.audit.probes.measurements import Difference, Repeatability
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import join_results
from sfm_tf.evaluation.settings import EvaluationConfig
from tests import made_up

LABELS = np.array([0, 1, 0, 1])


def _rows(right, attack, epsilon, threat_model="white_box", defence="sfm", count=4):
    prediction = np.where(right, LABELS, 1 - LABELS)[:count]
    clean = np.where([True, True, True, False], LABELS, 1 - LABELS)
    return made_up.answers(defence, threat_model, attack, epsilon, LABELS, clean, prediction)


RESULTS = join_results(
    [
        _rows([1, 1, 1, 0], "clean", 0.0, "none"),
        _rows([0, 0, 0, 0], "clean", 0.0, "none", "undefended"),
        _rows([1, 0, 1, 1], "fgsm", 8.0),
        _rows([1, 1, 0, 1], "pgd", 8.0),
        _rows([0, 0, 0, 0], "pgd", 16.0),
        _rows([0, 1, 1, 1], "adaptive_mask_aware", 8.0, "adaptive"),
        _rows([0, 0, 0, 0], "pgd", 8.0, "white_box", "undefended"),
        _rows([0, 1, 1, 0], "hop_skip_jump", 8.0, "decision_based", count=2),
        _rows([0, 0, 1, 0], "hop_skip_jump", np.inf, "decision_based", count=2),
    ]
)
EVIDENCE = Evidence(
    metrics=summarise(RESULTS),
    results=RESULTS,
    probes=None,
    config=EvaluationConfig(epsilons=(16.0, 8.0)),
    class_counts=count_classes(LABELS, 3),
)


@pytest.mark.parametrize(
    ("threat_models", "epsilon", "attacks", "right"),
    [
        # The last image is wrong without an attack, which counts as broken by all.
        (("white_box",), 8.0, None, [1, 0, 0, 0]),
        (("white_box",), 8.0, ("fgsm",), [1, 0, 1, 0]),
        (("white_box", "adaptive"), 8.0, None, [0, 0, 0, 0]),
        (("white_box",), 16.0, None, [0, 0, 0, 0]),
        # Of images that were not attacked nothing else is known.
        (("decision_based",), 8.0, None, [0, 1, 1, 0]),
    ],
)
def test_right_is_per_image_after_every_attack_of_a_group(threat_models, epsilon, attacks, right):
    assert EVIDENCE.right(threat_models, epsilon, attacks).tolist() == [bool(r) for r in right]


def test_what_was_not_run_is_not_there():
    assert EVIDENCE.right(("black_box",), 8.0) is None
    assert EVIDENCE.right(("white_box",), 4.0) is None
    assert EVIDENCE.right(("white_box",), 8.0, ("cw",)) is None
    assert EVIDENCE.right(("white_box",), 8.0, ()) is None
    assert EVIDENCE.attacks(("black_box",)) == ()
    assert EVIDENCE.examples("black_box") == 0


def test_only_the_subject_counts():
    assert EVIDENCE.subject == "sfm"
    assert EVIDENCE.clean().tolist() == [True, True, True, False]
    assert EVIDENCE.attacks(("white_box", "decision_based")) == ("fgsm", "pgd", "hop_skip_jump")
    assert EVIDENCE.examples("white_box") == 4
    assert EVIDENCE.examples("decision_based") == 2
    assert EVIDENCE.epsilon == 16.0


def test_classes_without_an_image_are_counted():
    assert count_classes(LABELS, 3) == {"0": 2, "1": 2, "2": 0}
    assert count_classes(LABELS, 3, ("a", "b", "c")) == {"a": 2, "b": 2, "c": 0}


def test_clean_answers_are_labels_and_predictions():
    labels, predictions = EVIDENCE.clean_answers()
    assert labels.tolist() == LABELS.tolist()
    assert predictions.tolist() == [0, 1, 0, 0]


def test_only_what_the_stronger_attack_leaves_counts():
    stronger = np.array([True, True, False, False])
    weaker = np.array([True, False, True, False])
    assert EVIDENCE.broken_beyond(stronger, weaker) == 1


@pytest.mark.parametrize(
    ("broken", "spared", "count"), [(10, 8, 0), (8, 10, 0), (30, 4, 26), (4, 30, 0), (9, 0, 0)]
)
def test_of_a_random_model_only_what_is_more_than_chance_counts(broken, spared, count):
    difference = Difference(images=16, labels=16, largest=0.5)
    drawing = Repeatability(
        examples=16,
        side_by_side=difference,
        calls=difference,
        batches=difference,
        lowest=-1.0,
        highest=2.0,
    )
    evidence = dataclasses.replace(EVIDENCE, repeatability={"served": drawing})
    stronger = np.repeat([True, False, True], [broken, spared, 10])
    weaker = np.repeat([False, True, True], [broken, spared, 10])
    assert evidence.broken_beyond(stronger, weaker) == count
    assert EVIDENCE.broken_beyond(stronger, weaker) == broken
