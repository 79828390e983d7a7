import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sfm_tf.artifacts.fingerprints import package_versions
from sfm_tf.audit.evidence import Evidence, count_classes
from sfm_tf.audit.probes.repeatability import measure_repeatability
from sfm_tf.audit.probes.suite import run_probes
from sfm_tf.audit.rules import RULES, audit
from sfm_tf.audit.verdict import verdict
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.runner import run_evaluation
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation

SHAPE = (8, 8, 1)
COUNT = 40
CONFIG = EvaluationConfig(
    epsilons=(16.0, 32.0),
    iterations=10,
    step_size=6.0,
    square_queries=200,
    threat_models=("white_box",),
)


def test_names_are_unique_and_every_rule_gives_its_reasons():
    assert len({rule.name for rule in RULES}) == len({rule.judge for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.title
        assert rule.why.endswith(".")
        assert any(character.isdigit() for character in rule.source), rule.source
    musts = [rule.is_must for rule in RULES]
    assert musts == sorted(musts, reverse=True)


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(16, "relu")]
    )
    classifier.add(keras.layers.Dense(10))
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, *SHAPE) / 16.0).astype(np.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(0.01), loss)
    classifier.fit(images[COUNT:], labels[COUNT:], batch_size=64, epochs=8, verbose=0)
    return classifier, images[:COUNT], labels[:COUNT]


def _findings(subject, trained, folder):
    classifier, images, labels = trained
    job = EvaluationJob(
        models={"undefended": DefendedModel(classifier), "sfm": subject},
        source=None,
        samples=check_samples(images, labels, classifier),
        config=CONFIG,
        seed=0,
        store=AdversarialStore(folder),
        progress=lambda *_: None,
    )
    evaluation = run_evaluation(job)
    evidence = Evidence(
        metrics=summarise(evaluation.results, evaluation.vanished),
        results=evaluation.results,
        probes=run_probes("sfm", job, False),
        repeatability=measure_repeatability(subject, job.samples, 64),
        config=CONFIG,
        class_counts=count_classes(labels, 10),
        packages=package_versions(),
        seed=0,
    )
    return {finding.rule: finding for finding in audit(evidence)}


def _failed(findings):
    return {name for name, f in findings.items() if f.is_must and f.status == "fail"}


def test_a_plain_defence_is_not_called_masked(trained, tmp_path):
    subject = DefendedModel(trained[0], None, parse_preprocessor("bit_depth_4"))
    findings = _findings(subject, trained, tmp_path)
    assert list(findings) == [rule.name for rule in RULES]
    assert _failed(findings) == set()
    assert verdict(findings.values()).level != "not_credible"


def test_logits_that_saturate_are_caught(trained, tmp_path):
    classifier = trained[0]
    masked = keras.Sequential([keras.Input(SHAPE), classifier, keras.layers.Rescaling(1000.0)])
    findings = _findings(DefendedModel(masked), trained, tmp_path)
    assert _failed(findings) >= {"gradients", "gradient_free", "huge_radius", "known_breaks"}
    assert verdict(findings.values()).level == "not_credible"


def test_a_surrogate_without_a_gradient_is_caught(trained, tmp_path):
    blocking = Operation(lambda images: images, lambda images: 0.0 * images, ())
    blocked = Preprocessor("blocking", "smooth", steps=((blocking, ()),))
    findings = _findings(DefendedModel(trained[0], None, blocked), trained, tmp_path)
    assert _failed(findings) >= {"gradients", "surrogates", "huge_radius"}
    assert verdict(findings.values()).level == "not_credible"
