"""Which attacks an evaluation runs on which models, each once for all who are scored on it."""

import dataclasses
from collections.abc import Mapping, Sequence

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
    """One attack on one model, through each stand-in of its gradient that is tried.

    Attributes:
        attack_name: A name of the catalogue.
        models: The model that is attacked, once for each stand-in, its own first. They compute the
            same; of each image the result that harms most counts.
        digests: Digests of `models`.
        scenarios: Who is scored on the images it makes, under which threat model.
        is_scored: Whether all scenarios score the very model that is attacked.
        examples: How many of the images are attacked, the first ones; None for all.
    """

    attack_name: str
    models: tuple[keras.Model, ...]
    digests: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    is_scored: bool
    examples: int | None

    @property
    def is_bounded(self) -> bool:
        """Whether it looks in a ball, rather than for the smallest perturbation."""
        return ATTACKS[self.attack_name].is_bounded

    @property
    def continues(self) -> bool:
        """Whether it starts at what the attacks before it left."""
        return ATTACKS[self.attack_name].continues


def plan_attacks(
    models: Mapping[str, DefendedModel], source: keras.Model | None, config: EvaluationConfig
) -> list[PlannedAttack]:
    """Returns the attacks of an evaluation, cheap ones first.

    Two threat models that come to the same attack on the same model share its images: both models
    share those of the black box, and gray and white box of a bare classifier are the same. An
    attack that goes on from others does so for each threat model by itself.

    Args:
        models: The models that are scored, by the names of their defences.
        source: Independent model of the black box; None where it is not asked for.
        config: Attacks and threat models.

    Raises:
        SfmError: If the black box is asked for without a source model.
    """
    digests = {defence: model_digest(model) for defence, model in models.items()}
    attacked: dict[str, keras.Model] = {}
    scenarios: dict[tuple[str, tuple[str, ...], str], list[Scenario]] = {}
    for defence, model in models.items():
        for threat_model in map(ThreatModel, config.threat_models):
            if not applies_to(threat_model, model):
                continue
            target = attacked_model(threat_model, model, source)
            variants = {model_digest(each): each for each in _variants(threat_model, target)}
            attacked = {**variants, **attacked}
            for name in default_attacks(threat_model, config.attacks):
                kind = ATTACKS[name]
                if kind.applies(model, threat_model.value):
                    followed = tuple(variants) if kind.uses_gradient else tuple(variants)[:1]
                    alone = threat_model.value if kind.continues else ""
                    shared = scenarios.setdefault((name, followed, alone), [])
                    shared.append(Scenario(defence, threat_model.value))
    plan = [
        PlannedAttack(
            attack_name=name,
            models=tuple(attacked[digest] for digest in followed),
            digests=followed,
            scenarios=tuple(shared),
            is_scored=all(digests[scenario.defence] == followed[0] for scenario in shared),
            examples=_examples(shared, config),
        )
        for (name, followed, _), shared in scenarios.items()
    ]
    return sorted(plan, key=lambda attack: attack_rank(attack.attack_name))


def _variants(threat_model: ThreatModel, target: keras.Model) -> tuple[keras.Model, ...]:
    """Returns the attacked model with each stand-in of its gradient that the attacker tries."""
    if threat_model.attacker.tries_surrogates and isinstance(target, DefendedModel):
        return target.with_each_surrogate()
    return (target,)


def _examples(scenarios: Sequence[Scenario], config: EvaluationConfig) -> int | None:
    is_few = all(ThreatModel(each.threat_model).has_few_examples for each in scenarios)
    return config.decision_examples if is_few else None
