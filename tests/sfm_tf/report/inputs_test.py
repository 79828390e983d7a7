import numpy as np
import pytest

from sfm_tf.audit.blessing import Blessing
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.inputs import Gallery, ReportInputs


def inputs(examples: int, class_counts: dict[str, int]) -> ReportInputs:
    images = np.zeros((1, 2, 2, 1), np.float32)
    shares = {"correct": 0, "accuracy": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.5}
    clean = CleanAccuracy(defence="sfm", examples=examples, **shares)
    return ReportInputs(
        experiment="digits",
        dataset="digits",
        statistics={},
        class_counts=class_counts,
        evaluation=EvaluationConfig(),
        metrics=Metrics(subject="sfm", clean=(clean,)),
        blessing=Blessing(False, ()),
        history={},
        manifests=(),
        gallery=Gallery(images, images, images, images),
    )


def test_figures_of_the_counted_images_are_taken():
    assert inputs(5, {"a": 2, "b": 3}).perturbations == ()


def test_figures_of_other_images_are_refused():
    with pytest.raises(SfmError, match=r"of \[6\] images, but their classes add up to 5"):
        inputs(6, {"a": 2, "b": 3})
