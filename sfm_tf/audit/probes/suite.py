"""All probes of one model, in one place."""

import numpy as np

from sfm_tf.audit.probes.attack_strength import (
    EFFORTS,
    probe_convergence,
    probe_curve,
    probe_ladder,
    probe_margin,
    probe_no_radius,
    probe_noise,
    probe_other_norm,
    probe_redrawn,
    probe_square,
    probe_targeted,
    probe_transfer,
)
from sfm_tf.audit.probes.measurements import (
    Convergence,
    ProbedModel,
    Probes,
    ProbeSettings,
    UnderSurrogate,
)
from sfm_tf.audit.probes.parts import probe_draws, probe_known_breaks, probe_parts, probe_surrogates
from sfm_tf.audit.probes.probed_models import SwitchedModel, make_ablations
from sfm_tf.audit.probes.probing import Prober
from sfm_tf.audit.probes.stage_gradients import gradient_health
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.models.defended_model import DefendedModel


def run_probes(defence: str, job: EvaluationJob, is_random: bool) -> Probes:
    """Returns what shows whether the attacks on a model were as strong as they could be.

    Unless said otherwise it is attacked in the white box, by the evaluation's PGD at its largest
    radius: with one random start, and whatever arithmetic other attacks use, in float32.

    Args:
        defence: Name of the model that the evaluation is about.
        job: The evaluation; its first `audit_examples` images are attacked.
        is_random: Whether the model was found to draw; then it is asked repeatedly.

    Returns:
        The same for the same arguments.
    """
    subject, samples = job.models[defence], job.samples.first(job.config.audit_examples)
    prober = Prober(SwitchedModel(subject), samples, job.config, job.seed, job.progress)
    ablations = make_ablations(subject)
    whole = ablations.whole
    convergence = probe_convergence(prober, whole)
    surrogates = probe_surrogates(prober, ablations, subject.preprocessor.surrogate)
    found = Probes(
        subject=_subject(subject),
        settings=_settings(prober),
        no_radius=probe_no_radius(prober, whole),
        ladder=probe_ladder(prober, whole),
        convergence=convergence,
        margin=probe_margin(prober, whole),
        curve=probe_curve(prober, whole),
        gradients=gradient_health(subject.for_attacker(), samples, prober.batch_size),
        surrogates=surrogates,
        parts=probe_parts(prober, ablations),
        known_breaks=probe_known_breaks(prober, ablations.bare),
        noise=probe_noise(prober, whole),
        square=probe_square(prober, whole, _left(convergence, surrogates)),
        transfer=probe_transfer(prober, ablations, job.source),
        targeted=probe_targeted(prober, whole),
        other_norm=probe_other_norm(prober, whole),
        redrawn=probe_redrawn(prober, whole),
        draws=probe_draws(prober, subject, whole) if is_random else None,
    )
    job.progress("audit: finished", len(samples), len(samples))
    return found


def _left(convergence: Convergence, surrogates: tuple[UnderSurrogate, ...]) -> np.ndarray:
    """Returns whether the model is right after each of these attacks, bool `(count,)`."""
    efforts = (getattr(convergence, name) for name in EFFORTS)
    return np.logical_and.reduce([entry.right_images() for entry in (*efforts, *surrogates)])


def _subject(subject: DefendedModel) -> ProbedModel:
    preprocessor = subject.preprocessor
    return ProbedModel(
        masker=subject.masker is not None,
        preprocessor=preprocessor.spec,
        surrogate=preprocessor.surrogate,
    )


def _settings(prober: Prober) -> ProbeSettings:
    config = prober.config
    return ProbeSettings(
        examples=len(prober.samples),
        seed=prober.seed,
        norm=config.norm,
        epsilon=prober.epsilon,
        step_size=prober.step_size(prober.epsilon),
        iterations=config.iterations,
        gradient_samples=config.gradient_samples,
    )
