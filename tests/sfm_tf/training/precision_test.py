"""Tests of the choice of arithmetic and of building models under it."""

import dataclasses

import keras
import pytest
import tensorflow as tf

from sfm_tf.training.precision import (
    dtype_policy,
    resolve_precision,
    with_resolved_precision,
)
from sfm_tf.training_config import TrainingConfig


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], "float32"),
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0)], "mixed_bfloat16"),
        ([(7, 5)], "float32"),
        ([(8, 6), (7, 0)], "float32"),
        ([None], "float32"),
    ],
)
def test_auto_is_bfloat16_where_every_gpu_has_it(monkeypatch, capabilities, expected):
    def details(gpu):
        return {} if capabilities[gpu] is None else {"compute_capability": capabilities[gpu]}

    gpus = list(range(len(capabilities)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details)
    assert resolve_precision("auto") == expected


@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_other_names_are_taken_at_their_word(name):
    assert resolve_precision(name) == name


def test_layers_made_inside_have_the_policy_and_later_ones_do_not():
    with dtype_policy("mixed_bfloat16"):
        inside = keras.layers.Dense(1)
    outside = keras.layers.Dense(1)
    assert (inside.compute_dtype, outside.compute_dtype) == ("bfloat16", "float32")


def test_settings_say_what_auto_stands_for_and_else_stay():
    auto = TrainingConfig(batch_size=7)
    resolved = with_resolved_precision(auto)
    assert resolved.mixed_precision == resolve_precision("auto")
    assert dataclasses.replace(resolved, mixed_precision="auto") == auto
    chosen = TrainingConfig(mixed_precision="mixed_float16")
    assert with_resolved_precision(chosen) == chosen


def test_previous_policy_returns_after_an_exception():
    def fail():
        with dtype_policy("float64"), dtype_policy("mixed_bfloat16"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert keras.config.dtype_policy().name == "float32"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
