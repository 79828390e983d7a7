import inspect
import math

import keras
import pytest

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.attack_options import COUNT
from sfm_tf.attacks.compiled_attack import CompiledAttack
from sfm_tf.attacks.keyword_options import complete, constructor_signature
from sfm_tf.errors import SfmError


class Doubled(CompiledAttack):
    options = {**CompiledAttack.options, "repeats": COUNT}
    defaults = {**CompiledAttack.defaults, "repeats": 2}

    def _attack_batch(self, batch):
        raise NotImplementedError


def _classifier():
    model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
    return wrap_classifier(model, 2, (1, 2, 1), 4)


def test_the_table_of_options_is_the_signature():
    parameters = inspect.signature(Doubled).parameters
    assert list(parameters) == ["estimator", *Doubled.options]
    assert parameters["epsilon"].default is inspect.Parameter.empty
    assert parameters["repeats"].default == 2
    kinds = {parameter.kind for name, parameter in parameters.items() if name != "estimator"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_options_that_are_left_out_have_their_defaults():
    attack = Doubled(_classifier(), epsilon=0.1, seed=3)
    values = {name: getattr(attack, name) for name in attack.attack_params}
    assert values == {
        "norm": math.inf,
        "epsilon": 0.1,
        "targeted": False,
        "batch_size": 128,
        "seed": 3,
        "repeats": 2,
    }


def test_defaults_for_what_is_no_option_are_left_out():
    class Bare(Doubled):
        options = {"epsilon": COUNT}

    attack = Bare(_classifier(), epsilon=1)
    assert attack.attack_params == ["epsilon"]
    assert not hasattr(attack, "repeats")


def test_an_option_without_default_cannot_be_left_out():
    with pytest.raises(SfmError, match="Missing epsilon of Doubled; expected a finite number ab"):
        Doubled(_classifier(), repeats=1)


def test_defaults_of_no_option_count_for_nothing():
    options, defaults = {"repeats": COUNT}, {"repeats": 2, "other": 1}
    assert str(constructor_signature(options, defaults)) == "(estimator, *, repeats=2)"
    assert complete("Some", options, defaults, {}) == {"repeats": 2}


def test_an_unknown_option_is_refused():
    with pytest.raises(SfmError, match="Unknown option 'eps' of Doubled; expected one of norm, "):
        Doubled(_classifier(), epsilon=0.1, eps=0.1)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
