"""Runs a stage once for each set of inputs, settings and code; half an artifact never appears."""

import dataclasses
import datetime
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sfm_tf.artifacts.fingerprints import (
    code_version,
    config_values,
    content_digest,
    fingerprint,
    package_versions,
)
from sfm_tf.artifacts.manifest import Manifest, write_manifest
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """What a stage is about to do; together these decide whether it was done before.

    Attributes:
        stage: Name of the stage, such as `train`.
        modules: The modules of this library that do the work; their code, and that of what they
            import, is part of the fingerprint.
        configs: The stage's settings, by section. Where a place is (`is_place`) does not count.
        seed: Seed of its random choices.
        inputs: The artifacts it reads, by stage.
        source: What else it depends on, such as the version of data from outside; empty where it
            reads artifacts only.
        resumable: Whether `produce` can go on from what an interrupted execution left.
    """

    stage: str
    modules: Sequence[str]
    configs: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, Artifact]
    source: str = ""
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished artifact, and whether it was there already."""

    artifact: Artifact
    reused: bool


def execute(
    execution: Execution,
    run_directory: RunDirectory,
    produce: Callable[[pathlib.Path], None],
    *,
    force: bool = False,
) -> Outcome:
    """Returns the artifact of `execution`, calling `produce` only where it is not there yet.

    Args:
        execution: What is to be done.
        run_directory: Where artifacts are kept.
        produce: Writes the artifact's files into the folder it is given. When it raises, no
            artifact appears, and what it wrote is kept only where a resumable stage continues from
            it.
        force: Whether to do the work again even so.

    Returns:
        The artifact, now also the latest of its stage.
    """
    manifest = _manifest(execution)
    with run_directory.exclusive(execution.stage):
        found = None if force else run_directory.find(execution.stage, manifest.fingerprint)
        try:
            artifact = found or _produce(execution, manifest, run_directory, produce, force)
        finally:
            run_directory.sweep(execution.stage, keep_work=execution.resumable)
        run_directory.set_latest(artifact)
    return Outcome(artifact, reused=found is not None)


def assist(
    execution: Execution, run_directory: RunDirectory, work: Callable[[pathlib.Path], None]
) -> None:
    """Does a share of the work of a stage that another process executes and has not finished.

    Args:
        execution: What is being done.
        run_directory: Where artifacts are kept.
        work: Is given the folder that the other process fills; reads it and writes nothing.
    """
    manifest = _manifest(execution)
    if run_directory.find(execution.stage, manifest.fingerprint) is None:
        work(run_directory.partial(execution.stage, manifest.fingerprint))


def _manifest(execution: Execution) -> Manifest:
    known: dict[str, Any] = {
        "stage": execution.stage,
        "config": {name: config_values(c) for name, c in execution.configs.items()},
        "seed": execution.seed,
        "inputs": {name: a.manifest.fingerprint for name, a in execution.inputs.items()},
        "code_version": code_version(*execution.modules),
        "package_versions": package_versions(),
    }
    # Work that was forced leaves other files under the same fingerprint, so what a stage reads
    # counts by its contents too.
    contents = {name: a.manifest.content for name, a in execution.inputs.items()}
    described = {
        **known,
        "config": {name: _without_places(c) for name, c in execution.configs.items()},
        "contents": contents,
        "source": execution.source,
    }
    return Manifest(
        fingerprint=fingerprint(described),
        content="",
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        wall_seconds=0.0,
        **known,
    )


def _without_places(config: Any) -> dict[str, Any]:
    """Returns the settings; of a place, only whether it is given: `source` tells what is there."""
    places = {each.name for each in dataclasses.fields(config) if each.metadata.get("is_place")}
    values = config_values(config)
    return {name: bool(value) if name in places else value for name, value in values.items()}


def _produce(
    execution: Execution,
    manifest: Manifest,
    run_directory: RunDirectory,
    produce: Callable[[pathlib.Path], None],
    force: bool,
) -> Artifact:
    start = time.monotonic()
    partial = run_directory.open_partial(
        execution.stage, manifest.fingerprint, empty=force or not execution.resumable
    )
    produce(partial)
    finished = dataclasses.replace(
        manifest,
        content=content_digest(partial),
        wall_seconds=round(time.monotonic() - start, 3),
    )
    write_manifest(partial, finished)
    return run_directory.finish(execution.stage, manifest.fingerprint)
