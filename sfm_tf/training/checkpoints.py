"""Checkpoints of a training: one file per epoch that is whole or absent, the last two kept."""

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
from sfm_tf.training.sparse_feature_masker_trainer import SparseFeatureMaskerTrainer

_KEPT = 2
_DESCRIPTION = "description"

History = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training.

    A file is a NumPy archive of the weights of both models, the state of both optimizers and, as
    JSON, the history, whose length is the number of finished epochs. Its checksums tell a damaged
    file from a whole one.

    Attributes:
        folder: Where they are; made when the first is saved.
        settings: What determines the training, as JSON values. A checkpoint of other settings is
            not resumed from.
    """

    folder: pathlib.Path
    settings: Mapping[str, Any]

    def save(self, trainer: SparseFeatureMaskerTrainer, history: History) -> None:
        """Saves the state after `len(history)` epochs and drops all files but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {str(index): value.numpy() for index, value in enumerate(_state(trainer))}
        description = json.dumps({"settings": self.settings, "history": history})
        file = io.BytesIO()
        np.savez(file, **arrays, **{_DESCRIPTION: np.array(description)})
        path = self.folder / f"epoch_{len(history):05d}.npz"
        atomic_files.write_bytes(path, file.getvalue())
        atomic_files.sync_folder(self.folder)
        for old in self._paths()[_KEPT:]:
            old.unlink()

    def restore(self, trainer: SparseFeatureMaskerTrainer) -> History:
        """Sets the trainer to the newest state that is whole.

        Args:
            trainer: Compiled, of the same models as when the state was saved.

        Returns:
            The history up to it; empty, the trainer unchanged, where there is none.

        Raises:
            SfmError: If it belongs to a training with other settings.
        """
        for path in self._paths():
            try:
                arrays, description = _read(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logging.warning(
                    "Checkpoint %s is damaged (%s); trying an earlier one.", path, error
                )
                continue
            self._check_settings(path, description["settings"])
            _assign(path, _state(trainer), arrays)
            return description["history"]
        return []

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


def _state(trainer: SparseFeatureMaskerTrainer) -> list[keras.Variable]:
    optimizers = [trainer.optimizer, trainer.masker_optimizer]
    variables = [optimizer.variables for optimizer in optimizers if optimizer is not None]
    return [*trainer.weights, *sum(variables, [])]


def _read(path: pathlib.Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        description = json.loads(str(archive[_DESCRIPTION]))
        return [archive[str(index)] for index in range(len(archive.files) - 1)], description


def _assign(
    path: pathlib.Path, variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]
) -> None:
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [array.shape for array in arrays]:
        raise SfmError(
            f"Checkpoint {path} holds other models than those to be trained; train into another "
            "folder."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
