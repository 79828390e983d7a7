"""Which attacks an evaluation runs on which models, each once for all who are scored on it."""

import dataclasses
from collections.abc import Mapping

import keras

from sfm_tf.evaluation.attack_catalogue import ATTACKS, attack_rank
from sfm_tf.evaluation.results import Scenario
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import model_digest
from sfm_tf.evaluation.threat_models import (
    ThreatModel,
    applies_to,
    attacked_model,
    default_attacks,
)
from sfm_tf.models.defended_model import DefendedModel


@dataclasses.dataclass(frozen=True)
class PlannedAttack:
    """One attack on one model.

    Attributes:
        attack_name: A name of the catalogue.
        model: The model that is attacked.
        digest: The model's digest.
        scenarios: Who is scored on the images it makes, under which threat model.
        is_scored: Whether all scenarios score the very model that is attacked.
        examples: How many of the images are attacked, the first ones; None for all.
    """

    attack_name: str
    model: keras.Model
    digest: str
    scenarios: tuple[Scenario, ...]
    is_scored: bool
    examples: int | None

    @property
    def is_bounded(self) -> bool:
        """Whether it looks in a ball, rather than for the smallest perturbation."""
        return ATTACKS[self.attack_name].is_bounded


def plan_attacks(
    models: Mapping[str, DefendedModel], source: keras.Model | None, config: EvaluationConfig
) -> list[PlannedAttack]:
    """Returns the attacks of an evaluation, cheap ones first.

    Two threat models that come to the same attack on the same model share its images: both models
    share those of the black box, and gray and white box of a bare classifier are the same.

    Args:
        models: The models that are scored, by the names of their defences.
        source: Independent model of the black box; None where it is not asked for.
        config: Attacks and threat models.

    Raises:
        SfmError: If the black box is asked for without a source model.
    """
    digests = {defence: model_digest(model) for defence, model in models.items()}
    attacked: dict[str, keras.Model] = {}
    scenarios: dict[tuple[str, str], list[Scenario]] = {}
    for defence, model in models.items():
        for threat_model in map(ThreatModel, config.threat_models):
            if not applies_to(threat_model, model):
                continue
            target = attacked_model(threat_model, model, source)
            digest = model_digest(target)
            attacked.setdefault(digest, target)
            for name in default_attacks(threat_model, config.attacks):
                scenarios.setdefault((digest, name), []).append(
                    Scenario(defence, threat_model.value)
                )
    plan = [
        PlannedAttack(
            attack_name=name,
            model=attacked[digest],
            digest=digest,
            scenarios=tuple(shared),
            is_scored=all(digests[scenario.defence] == digest for scenario in shared),
            examples=config.decision_examples if ATTACKS[name].is_slow else None,
        )
        for (digest, name), shared in scenarios.items()
    ]
    return sorted(plan, key=lambda attack: attack_rank(attack.attack_name))
