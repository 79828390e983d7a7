from sfm_tf.audit.rules import RULES


def test_names_are_unique_and_every_rule_gives_its_reasons():
    assert len({rule.name for rule in RULES}) == len({rule.judge for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.title
        assert rule.why.endswith(".")
        assert any(character.isdigit() for character in rule.source), rule.source
    musts = [rule.is_must for rule in RULES]
    assert musts == sorted(musts, reverse=True)
