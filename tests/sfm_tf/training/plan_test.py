"""Tests of the plans against Algorithm 1 written out."""

import pytest

from sfm_tf.training.phases import Phase
from sfm_tf.training.plan import (
    Epoch,
    adversarial_plan,
    count_classifier_passes,
    count_passes,
    defence_plan,
    source_plan,
)
from sfm_tf.training_config import TrainingConfig

_PRETRAINING = Epoch("pretraining", (Phase.CLASSIFIER,))


def test_alternation_follows_pre_training():
    plan = defence_plan(TrainingConfig(pretraining_epochs=2, epochs=3, alternation="epoch"))
    turn = Epoch("alternation", (Phase.CLASSIFIER, Phase.MASKER))
    assert plan == (_PRETRAINING, _PRETRAINING, turn, turn, turn)


def test_alternation_by_step_is_one_pass_for_both():
    config = TrainingConfig(pretraining_epochs=1, epochs=1, alternation="step")
    assert defence_plan(config) == (_PRETRAINING, Epoch("alternation", (Phase.BOTH,)))


def test_frozen_target_leaves_only_the_masker_to_train_after_pre_training():
    plan = defence_plan(TrainingConfig(pretraining_epochs=1, epochs=2, freeze_classifier=True))
    assert plan == (_PRETRAINING, *(Epoch("alternation", (Phase.MASKER,)),) * 2)


def test_ramp_rises_evenly_and_stays_at_the_whole_weight():
    plan = defence_plan(
        TrainingConfig(pretraining_epochs=1, epochs=6, sparsity_ramp_epochs=4), first_share=0.2
    )
    assert [epoch.sparsity_share for epoch in plan] == pytest.approx(
        [1.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_ramp_that_is_longer_than_the_training_is_cut():
    plan = defence_plan(
        TrainingConfig(pretraining_epochs=0, epochs=2, sparsity_ramp_epochs=4), first_share=0.0
    )
    assert [epoch.sparsity_share for epoch in plan] == [0.0, 0.25]


def test_source_is_plain_training():
    plan = source_plan(TrainingConfig(source_epochs=2))
    assert plan == (Epoch("source", (Phase.CLASSIFIER,)),) * 2


def test_adversarial_epochs_follow_pre_training_and_alternate_where_there_is_a_masker():
    config = TrainingConfig(pretraining_epochs=1, adversarial_epochs=2, alternation="epoch")
    alone = Epoch("adversarial", (Phase.CLASSIFIER,))
    assert adversarial_plan(config, has_masker=False) == (_PRETRAINING, alone, alone)
    turn = Epoch("adversarial_alternation", (Phase.CLASSIFIER, Phase.MASKER))
    assert adversarial_plan(config, has_masker=True) == (_PRETRAINING, turn, turn)


def test_adversarial_alternation_by_step_is_one_pass_for_both():
    config = TrainingConfig(pretraining_epochs=0, adversarial_epochs=1, alternation="step")
    (epoch,) = adversarial_plan(config, has_masker=True)
    assert epoch.phases == (Phase.BOTH,)


@pytest.mark.parametrize(("alternation", "expected"), [("epoch", 5), ("step", 5)])
def test_masker_passes_do_not_count_for_the_classifier(alternation, expected):
    config = TrainingConfig(pretraining_epochs=2, epochs=3, alternation=alternation)
    assert count_classifier_passes(defence_plan(config)) == expected


def test_passes_of_a_stage_are_counted():
    plan = defence_plan(TrainingConfig(pretraining_epochs=2, epochs=3, alternation="epoch"))
    assert [count_passes(plan, stage) for stage in ("pretraining", "alternation")] == [2, 6]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
