"""Where each stage reads and writes: the one module that knows the layout of a working directory.

    <workdir>/experiment.json                the experiment that owns the directory
    <workdir>/<stage>/<fingerprint>/         a finished artifact with its manifest.json
    <workdir>/<stage>/<fingerprint>.partial/ work that was not finished, to be resumed
    <workdir>/<stage>/<name>/                what executions of a stage share, such as adversarial
    <workdir>/<stage>/latest                 the fingerprint of the artifact to read next

An artifact is never overwritten by one of other settings: both stay, each under its fingerprint.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator

from sfm_tf.artifacts.atomic_files import sync_folder, write_json, write_text
from sfm_tf.artifacts.manifest import Manifest, read_manifest
from sfm_tf.errors import SfmError, check_utf8

ADVERSARIAL_STAGE = "train_adversarially"
"""Stage of the models that `pipelines.train --adversarial_training` trains beside the others."""

_OWNER_FILE, _LOCK_FILE = "experiment.json", ".lock"

_NAME_LENGTH = 16  # 64 bits of the fingerprint: short to read, and no two will meet.


def fit_stage(name: str) -> str:
    """Returns the stage whose artifact holds what an operation of a defence was fitted to."""
    return f"fit_{name}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished folder and the manifest in it."""

    folder: pathlib.Path
    manifest: Manifest


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The working directory of one experiment."""

    root: pathlib.Path

    @property
    def flag(self) -> str:
        """The flag that names it, as a shell takes it."""
        return shlex.quote(f"--workdir={self.root}")

    def claim(self, experiment: str) -> None:
        """Assigns the directory to `experiment`, and creates it if it is absent.

        Raises:
            SfmError: If it belongs to another experiment, or holds files but no experiment, or
                its name is not UTF-8.
        """
        check_utf8(self.root, "--workdir")
        self.check_owner(experiment)
        if self.experiment() is None:
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / _OWNER_FILE, {"experiment": experiment})

    @contextlib.contextmanager
    def claimed(self, experiment: str) -> Iterator[None]:
        """Assigns the directory to `experiment` as `claim` does, unless the context fails first.

        If it fails and has made no file, what was new is removed: another experiment may have the
        directory then.
        """
        is_new, is_absent = self.experiment() is None, not self.root.exists()
        self.claim(experiment)
        try:
            yield
        except BaseException:
            left = {path.name for path in self.root.rglob("*") if not path.is_dir()}
            if is_new and left <= {_OWNER_FILE, _LOCK_FILE}:
                for path in self.root.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if is_absent:
                    self.root.rmdir()
            raise

    def check_owner(self, experiment: str) -> None:
        """Checks that `experiment` may work in the directory, and creates nothing.

        Raises:
            SfmError: If it belongs to another experiment, or holds files but no experiment, or
                its name is not UTF-8.
        """
        check_utf8(self.root, "--workdir")
        owner = self.experiment()
        if owner is not None and owner != experiment:
            raise SfmError(
                f"Working directory {self.root} belongs to experiment {owner!r}, not "
                f"{experiment!r}; give another --workdir or --experiment={owner}."
            )
        is_free = not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))
        if owner is None and not is_free:
            raise SfmError(
                f"Cannot work in {self.root}: it is neither empty nor a working directory of "
                "this program; give --workdir a new or empty folder."
            )

    def experiment(self) -> str | None:
        """Returns the name of the experiment that owns the directory, or None where none does."""
        path = self.root / _OWNER_FILE
        if not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["experiment"])
        except (ValueError, KeyError, TypeError) as error:
            raise SfmError(f"Cannot read {path} ({error}); give another --workdir.") from error

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """Returns the finished artifact with this fingerprint, or None."""
        folder = self._folder(stage, fingerprint)
        return Artifact(folder, read_manifest(folder)) if folder.exists() else None

    def latest(self, stage: str, program: str = "") -> Artifact:
        """Returns the artifact of the last run of `stage`.

        Args:
            stage: Name of the stage.
            program: Program and flags that run it, where it has no program of its own name.

        Raises:
            SfmError: If the stage has not finished in this directory.
        """
        pointer = self.root / stage / "latest"
        found = None
        if pointer.exists():
            name = pointer.read_text(encoding="utf-8", errors="replace").strip()
            found = self.find(stage, name)
        if found is None:
            raise SfmError(
                f"Stage {stage} has not finished in {self.root}; run "
                f"`python -m pipelines.{program or stage} {self.flag}` first."
            )
        return found

    def has_finished(self, stage: str) -> bool:
        """Tells whether `stage` has an artifact that `latest` returns."""
        return (self.root / stage / "latest").exists()

    def input_of(self, artifact: Artifact, stage: str) -> Artifact:
        """Returns the artifact of `stage` that `artifact` was made from, latest or not.

        Raises:
            SfmError: If it was deleted.
        """
        maker = artifact.manifest.stage
        if stage not in artifact.manifest.inputs:
            raise SfmError(
                f"{artifact.folder} was made without stage {stage}; run stages {stage} and {maker} "
                "first."
            )
        found = self.find(stage, artifact.manifest.inputs[stage])
        if found is None:
            raise SfmError(
                f"The {stage} artifact that {artifact.folder} was made from is gone; run stage "
                f"{stage} and then {maker} again."
            )
        return found

    def inputs_of(self, artifact: Artifact) -> dict[str, Artifact]:
        """Returns all artifacts that `artifact` was made from, by stage.

        Raises:
            SfmError: If one was deleted.
        """
        return {stage: self.input_of(artifact, stage) for stage in artifact.manifest.inputs}

    def shared_folder(self, stage: str, name: str) -> pathlib.Path:
        """Returns the folder `name` that all executions of `stage` share; it may not be there."""
        return self.root / stage / name

    def set_latest(self, artifact: Artifact) -> None:
        """Makes later stages read `artifact`."""
        stage = artifact.manifest.stage
        write_text(self.root / stage / "latest", artifact.manifest.fingerprint + "\n")

    def partial(self, stage: str, fingerprint: str) -> pathlib.Path:
        """Returns where the folder of unfinished work is, or would be."""
        return self.root / stage / f"{fingerprint[:_NAME_LENGTH]}.partial"

    def open_partial(self, stage: str, fingerprint: str, *, empty: bool) -> pathlib.Path:
        """Returns the folder of unfinished work, as it was left unless `empty` is asked for."""
        partial = self.partial(stage, fingerprint)
        if empty and partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for hidden in partial.rglob(".*"):
            # Temporary files of a process that was killed; their names never count as finished.
            hidden.unlink()
        return partial

    def sweep(self, stage: str, *, keep_work: bool) -> None:
        """Removes the folders of unfinished work that nothing will continue from.

        Args:
            stage: Name of the stage, which no process may be running.
            keep_work: Whether to keep those that hold a file.
        """
        for partial in (self.root / stage).glob("*.partial"):
            if not keep_work or not any(path.is_file() for path in partial.rglob("*")):
                shutil.rmtree(partial)

    def finish(self, stage: str, fingerprint: str) -> Artifact:
        """Turns the partial folder, which has its manifest, into the finished artifact."""
        final, partial = self._folder(stage, fingerprint), self.partial(stage, fingerprint)
        replaced = final.with_name(final.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            os.rename(final, replaced)
        os.rename(partial, final)
        sync_folder(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        return Artifact(final, read_manifest(final))

    @contextlib.contextmanager
    def exclusive(self, stage: str) -> Iterator[None]:
        """Keeps a second process from running the same stage in this directory meanwhile.

        Raises:
            SfmError: If another process is running it.
        """
        folder = self.root / stage
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / _LOCK_FILE, "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SfmError(
                    f"Stage {stage} is already running in {self.root}; wait for it or give "
                    "another --workdir."
                ) from error
            yield

    def _folder(self, stage: str, fingerprint: str) -> pathlib.Path:
        return self.root / stage / fingerprint[:_NAME_LENGTH]
