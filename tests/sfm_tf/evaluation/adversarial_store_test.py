import errno
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.artifacts import fingerprints
from sfm_tf.attacks.attack import AttackOutcome, BatchOutcome, CompiledAttack
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import (
    AdversarialStore,
    AttackExecution,
    RemainingImages,
    StoredSet,
)
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.runner import clean_outcome
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.art_classifier import wrap_classifier

SHAPE = (5, 3, 2, 1)


def _outcome():
    random = np.random.default_rng(0)
    images = random.random(SHAPE, dtype=np.float32)
    images[0, 0, 0, 0] = np.float32(1e-42)  # Denormal: text or 8 bits would lose it.
    return AttackOutcome(
        images=images,
        loss=random.normal(size=5).astype(np.float32),
        iterations=np.arange(5, dtype=np.int32),
        zero_gradient=np.array([True, False, False, True, False]),
    )


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path):
    store, outcome = AdversarialStore(tmp_path / "sets"), _outcome()
    store.write("pgd-8-abc", outcome)
    found = store.read("pgd-8-abc", SHAPE)
    for name in ("images", "loss", "iterations", "zero_gradient"):
        value, expected = getattr(found, name), getattr(outcome, name)
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


def test_records_are_examples_that_anyone_can_parse(tmp_path):
    store, outcome = AdversarialStore(tmp_path), _outcome()
    store.write("pgd-8-abc", outcome)
    records = list(tf.data.TFRecordDataset(str(tmp_path / "pgd-8-abc.tfrecord")))
    feature = tf.train.Example.FromString(records[3].numpy()).features.feature
    image = np.frombuffer(feature["image/float32"].bytes_list.value[0], np.float32)
    np.testing.assert_array_equal(image.reshape(SHAPE[1:]), outcome.images[3])
    assert feature["attack/iterations"].int64_list.value[0] == 3
    assert feature["attack/zero_gradient"].int64_list.value[0] == 1


def test_a_set_that_was_not_written_is_none(tmp_path):
    assert AdversarialStore(tmp_path / "sets").read("pgd-8-abc", SHAPE) is None


def test_nothing_but_whole_files_is_left(tmp_path):
    store, outcome = AdversarialStore(tmp_path), _outcome()
    store.write("pgd-8-abc", outcome)
    broken = AttackOutcome(outcome.images, outcome.loss[:2], outcome.iterations, outcome.loss)
    with pytest.raises(IndexError):
        store.write("pgd-8-abc", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["pgd-8-abc.tfrecord"]
    assert store.read("pgd-8-abc", SHAPE) is not None


@pytest.mark.parametrize("shape", [(4, 3, 2, 1), (5, 3, 3, 1)], ids=["count", "size"])
def test_another_shape_is_refused(tmp_path, shape):
    store = AdversarialStore(tmp_path)
    store.write("pgd-8-abc", _outcome())
    with pytest.raises(SfmError, match=r"holds (5 images; expected 4|images of \[24\] bytes)"):
        store.read("pgd-8-abc", shape)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    store = AdversarialStore(tmp_path)
    store.write("pgd-8-abc", _outcome())
    path = store.path("pgd-8-abc")
    data = bytearray(path.read_bytes())
    data[60] ^= 1 if damage == "flip" else 0
    path.write_bytes(data[:-5] if damage == "cut" else data)
    if damage == "foreign":
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(tf.train.Example().SerializeToString())
    with pytest.raises(SfmError, match="Cannot read .* Delete it and run the evaluation again"):
        store.read("pgd-8-abc", SHAPE)


def _part(outcome, start, stop):
    fields = ("images", "loss", "iterations", "zero_gradient")
    return AttackOutcome(*(getattr(outcome, name)[start:stop] for name in fields))


def test_batches_are_read_back_as_far_as_they_follow_each_other(tmp_path):
    store, outcome = AdversarialStore(tmp_path), _outcome()
    assert store.read_batches("pgd-8-abc", SHAPE[1:]) == []
    store.write_batch("pgd-8-abc", 0, _part(outcome, 0, 2))
    store.write_batch("pgd-8-abc", 4, _part(outcome, 4, 5))
    assert [len(batch.images) for batch in store.read_batches("pgd-8-abc", SHAPE[1:])] == [2]
    store.write_batch("pgd-8-abc", 2, _part(outcome, 2, 4))
    batches = store.read_batches("pgd-8-abc", SHAPE[1:])
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), outcome.images)
    assert store.read("pgd-8-abc", SHAPE) is None


def test_a_finished_set_takes_the_place_of_its_batches(tmp_path):
    store, outcome = AdversarialStore(tmp_path), _outcome()
    store.write_batch("pgd-8-abc", 0, _part(outcome, 0, 2))
    store.write("pgd-8-abc", outcome)
    assert [path.name for path in tmp_path.rglob("*")] == ["pgd-8-abc.tfrecord"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_linked_set_outlives_the_one_it_was_linked_to(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another disk")

    store, other = AdversarialStore(tmp_path / "shared"), AdversarialStore(tmp_path / "own")
    store.write("pgd-8-abc", _outcome())
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    other.link(store, ["pgd-8-abc", "pgd-8-abc"])
    store.path("pgd-8-abc").unlink()
    np.testing.assert_array_equal(other.read("pgd-8-abc", SHAPE).images, _outcome().images)


def test_a_full_disk_is_not_mistaken_for_one_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "disk full")

    store = AdversarialStore(tmp_path / "shared")
    store.write("pgd-8-abc", _outcome())
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="disk full"):
        AdversarialStore(tmp_path / "own").link(store, ["pgd-8-abc"])


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    store = AdversarialStore(tmp_path)
    store.write("pgd-8-abc", _outcome())
    store.write_batch("mim-8-abc", 0, _outcome())
    for folder in (tmp_path, tmp_path / "mim-8-abc.batches"):
        (folder / ".half.tfrecord.123.tmp").write_bytes(b"half")
    (tmp_path / "pgd-8-abc.batches").mkdir()
    (tmp_path / "pgd-8-abc.batches" / "00000000.tfrecord").write_bytes(b"a batch of the whole set")
    store.sweep()
    assert sorted(path.name for path in tmp_path.rglob("*.t*")) == [
        "00000000.tfrecord",
        "pgd-8-abc.tfrecord",
    ]


def test_the_index_says_what_each_set_was_used_for(tmp_path):
    sets = [
        StoredSet("sfm", "black_box", "pgd", 8.0, "pgd-8-abc"),
        StoredSet("undefended", "black_box", "cw", None, "cw-inf-abc"),
    ]
    store = AdversarialStore(tmp_path / "sets")
    store.write_index(sets)
    assert store.read_index() == sets


@pytest.mark.parametrize("content", [None, "[{}]", "not JSON"])
def test_a_missing_or_damaged_index_is_reported(tmp_path, content):
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(SfmError, match="Cannot read .*index.json .*; run the evaluation again"):
        AdversarialStore(tmp_path).read_index()


ATTACK_EXECUTION_SHAPE = (2, 2, 1)
COUNT = 10


class Shift(CompiledAttack):
    """Brightens images by a share of the radius that is drawn from their seeds."""

    __module__ = "sfm_tf.attacks.attack"  # The code that a fingerprint covers is the library's.
    killed_after = None
    fits = 4

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sizes = []

    def _attack_batch(self, batch):
        self.sizes.append(int(batch.images.shape[0]))
        if batch.images.shape[0] > self.fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        if self.killed_after is not None and len(self.sizes) > self.killed_after:
            raise KeyboardInterrupt
        share = tf.map_fn(
            lambda seed: tf.random.stateless_uniform((), seed),
            batch.seeds,
            fn_output_signature=tf.float32,
        )
        images = batch.images + self.epsilon * share[:, None, None, None]
        return BatchOutcome(images, share, batch.seeds[:, 1], share > 0.5)


def _model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input(ATTACK_EXECUTION_SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


MODEL = _model()
SAMPLES = check_samples(
    np.random.default_rng(0).uniform(0.2, 0.8, (COUNT, *ATTACK_EXECUTION_SHAPE)).astype(np.float32),
    np.arange(COUNT) % 3,
    MODEL,
)


def _attack(**changes):
    options = {"norm": "inf", "epsilon": 0.1, "targeted": False, "batch_size": 4, "seed": 1}
    return Shift(wrap_classifier(MODEL, 3, ATTACK_EXECUTION_SHAPE, 4), **{**options, **changes})


def _execution(folder, attack, progress=lambda *_: None, **changes):
    fields = {"label": "shift-8", "phrase": "shift", "model_digest": "0", "samples": SAMPLES}
    store = AdversarialStore(folder)
    return AttackExecution(attack=attack, store=store, progress=progress, **{**fields, **changes})


def _is_equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(first))


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_attack_redoes_no_finished_batch_and_ends_the_same(tmp_path, killed_after):
    _, whole = _execution(tmp_path / "whole", _attack()).outcome()
    attack = _attack()
    attack.killed_after = killed_after
    with pytest.raises(KeyboardInterrupt):
        _execution(tmp_path / "killed", attack).outcome()
    again = _attack()
    _, resumed = _execution(tmp_path / "killed", again).outcome()
    assert len(again.sizes) == 3 - killed_after
    assert _is_equal(resumed, whole)


def test_a_finished_attack_is_read_back(tmp_path):
    name, outcome = _execution(tmp_path, _attack()).outcome()
    again = _attack()
    assert _execution(tmp_path, again).outcome()[0] == name
    assert _is_equal(_execution(tmp_path, again).outcome()[1], outcome)
    assert again.sizes == []


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"epsilon": 0.2}, {}),
        ({"seed": 2}, {}),
        ({}, {"model_digest": "1"}),
        ({}, {"samples": SAMPLES.first(9)}),
    ],
)
def test_a_batch_of_another_attack_is_never_gone_on_with(tmp_path, options, changes):
    attack = _attack()
    attack.killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        _execution(tmp_path, attack).outcome()
    other = _attack(**options)
    _, outcome = _execution(tmp_path, other, **changes).outcome()
    assert len(other.sizes) == 3
    fresh = _execution(tmp_path / "fresh", _attack(**options), **changes).outcome()[1]
    assert _is_equal(outcome, fresh)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path):
    steps, attack = [], _attack(batch_size=8)
    attack.fits = 2
    _, outcome = _execution(tmp_path, attack, lambda *step: steps.append(step)).outcome()
    assert attack.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert [phrase for phrase, *_ in steps if "memory" in phrase] == [
        "shift: out of memory at batch 8, going on with 4",
        "shift: out of memory at batch 4, going on with 2",
    ]
    assert _is_equal(outcome, _execution(tmp_path / "whole", _attack()).outcome()[1])


def test_a_single_image_that_does_not_fit_is_an_error(tmp_path):
    attack = _attack()
    attack.fits = 0
    with pytest.raises(SfmError, match="Out of memory in shift with a single image"):
        _execution(tmp_path, attack).outcome()


@pytest.mark.parametrize(("rows", "sizes"), [([1, 2, 5, 7, 9], [4, 4]), ([], [])])
def test_only_images_that_stand_are_attacked(tmp_path, rows, sizes):
    clean = clean_outcome(wrap_classifier(MODEL, 3, ATTACK_EXECUTION_SHAPE, 4), SAMPLES)
    rows = np.array(rows, int)
    attack = _attack()
    _, outcome = _execution(tmp_path, attack).outcome(RemainingImages("", clean, rows))
    assert attack.sizes == sizes
    others = np.setdiff1d(np.arange(COUNT), rows)
    np.testing.assert_array_equal(outcome.images[others], SAMPLES.images[others])
    whole = _execution(tmp_path / "whole", _attack()).outcome()[1]
    np.testing.assert_array_equal(outcome.images[rows], whole.images[rows])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stored_set_depends_on_its_attack_and_not_on_who_evaluates_it(name):
    module, _ = ATTACKS[name].class_path.split(".")
    library = fingerprints._LIBRARY_FOLDER
    paths = fingerprints.code_files(f"sfm_tf.attacks.{module}")
    packages = {path.relative_to(library).parts[0].removesuffix(".py") for path in paths}
    assert library / "attacks" / f"{module}.py" in paths
    assert packages <= {"__init__", "attacks", "errors", "models", "preprocessors", "settings"}
    is_composed = module == "autoattack"
    assert (library / "attacks" / "square.py" in paths) is (is_composed or module == "square")


def test_progress_counts_images(tmp_path):
    steps = []
    _execution(tmp_path, _attack(), lambda *step: steps.append(step)).outcome()
    assert steps == [("shift", done, COUNT) for done in (0, 4, 8, 10)]
