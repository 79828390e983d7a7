"""Checkpoints of a training: files that are whole or absent, the newest and the best epoch's."""

import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError

_DESCRIPTION = "description"
_BEST_FILE = "best.npz"
_MEASURE = "defended_accuracy"

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)

History = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a training is; the rest of it follows from this and the trainer's state.

    Attributes:
        history: Stage, metrics and seconds of each finished epoch.
        passes: Finished passes of the current epoch.
        step: Finished steps of the current pass.
        training: Mean metrics of the finished passes of the current epoch.
        seconds: Seconds of the current epoch so far, by phase.
    """

    history: History = dataclasses.field(default_factory=list)
    passes: int = 0
    step: int = 0
    training: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its file; names sort as positions do."""
        begun = f"_{self.passes}_{self.step:08d}" if self.passes or self.step else ""
        return f"epoch_{len(self.history):05d}{begun}.npz"

    @property
    def is_best(self) -> bool:
        """Whether this is the end of the best epoch so far, if accuracy is measured at all."""
        if self.passes or self.step or _MEASURE not in self.history[-1]["validation"]:
            return False
        return best_epoch(self.history) == len(self.history) - 1


def best_epoch(history: History) -> int:
    """Returns the index of the best epoch of the last stage, the first of equals.

    The measure is the accuracy of the defended model on the validation images, and that under
    attack added where training measures it.
    """
    stage = history[-1]["stage"]
    measures = [
        epoch["validation"][_MEASURE] + epoch["validation"].get("adversarial_accuracy", 0.0)
        if epoch["stage"] == stage
        else -1.0
        for epoch in history
    ]
    return int(np.argmax(measures))


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training.

    A file is a NumPy archive of the trainer's state and, as JSON, the position. Its checksums tell
    a damaged file from a whole one.

    Attributes:
        folder: Their folder, made when the first is saved.
        settings: All settings that the training depends on, as JSON values. A checkpoint of other
            settings is refused.
        kept: Number of newest ones to keep, besides that of the best epoch.
        is_writer: Whether this process writes them; all processes have to call `save`.
    """

    folder: pathlib.Path
    settings: Mapping[str, Any]
    kept: int = 2
    is_writer: bool = True

    def save(self, state: Sequence[keras.Variable], position: Position) -> None:
        """Saves the state at a position and drops all files but the newest and the best."""
        arrays = {str(index): value.numpy() for index, value in enumerate(state)}
        if not self.is_writer:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        described = {"settings": self.settings, "position": dataclasses.asdict(position)}
        file = io.BytesIO()
        np.savez(file, **arrays, **{_DESCRIPTION: np.array(json.dumps(described))})
        atomic_files.write_bytes(self.folder / position.name, file.getvalue())
        if position.is_best:
            atomic_files.write_bytes(self.folder / _BEST_FILE, file.getvalue())
        atomic_files.sync_folder(self.folder)
        for old in self._paths()[self.kept :]:
            old.unlink()

    def restore(self, state: Sequence[keras.Variable]) -> Position:
        """Sets the variables to the newest state that is whole.

        Args:
            state: The same variables as when it was saved.

        Returns:
            Its position. Where there is none, the beginning; the variables stay unchanged.

        Raises:
            SfmError: If it belongs to a training with other settings.
        """
        for path in self._paths():
            try:
                arrays, description = _read(path)
            except _DAMAGE as error:
                logging.warning(
                    "Checkpoint %s is damaged (%s); trying an earlier one.", path, error
                )
                continue
            self._assign(path, state, arrays, description)
            return Position(**description["position"])
        return Position()

    def restore_best(self, state: Sequence[keras.Variable]) -> None:
        """Sets the variables to the state after the best epoch.

        Raises:
            SfmError: If its file is missing, damaged or of a training with other settings.
        """
        path = self.folder / _BEST_FILE
        try:
            arrays, description = _read(path)
        except _DAMAGE as error:
            raise SfmError(
                f"Cannot read {path} ({error}); train again, or set kept_epoch to last."
            ) from error
        self._assign(path, state, arrays, description)

    def _assign(
        self,
        path: pathlib.Path,
        state: Sequence[keras.Variable],
        arrays: Sequence[np.ndarray],
        description: Mapping[str, Any],
    ) -> None:
        self._check_settings(path, description["settings"])
        shapes = [tuple(variable.shape) for variable in state]
        if shapes != [array.shape for array in arrays]:
            raise SfmError(
                f"Checkpoint {path} holds other models than those to be trained; train into "
                "another folder."
            )
        for variable, array in zip(state, arrays, strict=True):
            variable.assign(array)

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("epoch_*.npz"), reverse=True)

    def _check_settings(self, path: pathlib.Path, found: Mapping[str, Any]) -> None:
        expected = json.loads(json.dumps(self.settings))
        if found != expected:
            names = sorted(set(found) | set(expected))
            differing = [name for name in names if found.get(name) != expected.get(name)]
            raise SfmError(
                f"Checkpoint {path} was made with other settings ({', '.join(differing)}); resume "
                "with those or train into another folder."
            )


def _read(path: pathlib.Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        description = json.loads(str(archive[_DESCRIPTION]))
        return [archive[str(index)] for index in range(len(archive.files) - 1)], description
