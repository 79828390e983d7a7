"""What a client can ask of a served model, whatever the protocol."""

import abc
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.answers import (
    Answer,
    Explanation,
    Outputs,
    read_answers,
    read_explanations,
)
from sfm_tf.serving.client.image_batches import (
    BYTES_PER_VALUE,
    batches,
    check_batch_size,
    checked_content,
    checked_images,
    read_image_file,
)
from sfm_tf.serving.client.model_description import (
    ModelMetadata,
    VersionStatus,
    read_metadata,
    read_status,
)
from sfm_tf.serving.client.retries import RetryPolicy


class ModelClient(abc.ABC):
    """Classifies and explains images with a served model.

    Images are sent in requests of at most `batch_size`, fewer where they are large, one after the
    other; each request is tried as its retry policy says. Threads may share a client.

    Attributes:
        server: Address of the server.
        model_name: Name the server knows the model by.
        version: Version asked for; None for the one the server chooses, its latest.
        batch_size: Most images in one request.
        retry_policy: How often and how long a request is tried.
    """

    def __init__(
        self,
        server: str,
        model_name: str,
        version: int | None,
        batch_size: int,
        retry_policy: RetryPolicy,
    ) -> None:
        """Keeps the settings; nothing is sent.

        Raises:
            SfmError: If one of them is not usable.
        """
        check_batch_size(batch_size)
        if not model_name:
            raise SfmError("Empty model_name; expected the name that the server knows.")
        if version is not None and version < 0:
            raise SfmError(f"Invalid version {version}; expected 0 or more.")
        self.server, self.model_name, self.version = server, model_name, version
        self.batch_size, self.retry_policy = batch_size, retry_policy

    def classify(self, images: np.ndarray) -> list[Answer]:
        """Classifies images of the size the model was trained with.

        Args:
            images: Float32 in [0, 1] of shape `(count, height, width, channels)`.

        Returns:
            An answer per image.

        Raises:
            SfmError: If the images are not such, or no usable answer comes.
        """
        answers: list[Answer] = []
        for batch in self._image_batches(images):
            outputs = self._predict("serving_default", "images", batch)
            answers += read_answers(outputs, len(batch))
        return answers

    def classify_bytes(self, contents: Iterable[bytes]) -> list[Answer]:
        """Classifies PNG and JPEG files of any size; the server resizes them.

        Args:
            contents: The bytes of each file, at most `LARGEST_FILE`.

        Returns:
            An answer per file, whose status says whether it could be classified.

        Raises:
            SfmError: If a file is larger, or no usable answer comes.
        """
        answers: list[Answer] = []
        for batch in batches(map(checked_content, contents), self.batch_size, len):
            outputs = self._predict("predict_bytes", "image_bytes", batch)
            answers += read_answers(outputs, len(batch))
        return answers

    def classify_files(self, paths: Iterable[str | pathlib.Path]) -> list[Answer]:
        """As `classify_bytes`, for files by their paths; for many, see `classify_folder`.

        Raises:
            SfmError: If a file cannot be read or is too large, or no usable answer comes.
        """
        return self.classify_bytes(read_image_file(pathlib.Path(path)) for path in paths)

    def explain(self, images: np.ndarray) -> list[Explanation]:
        """Shows what the defence makes of images.

        Args:
            images: As for `classify`.

        Returns:
            An explanation per image.

        Raises:
            SfmError: If the images are not such, or no usable answer comes.
        """
        explanations: list[Explanation] = []
        for batch in self._image_batches(images):
            outputs = self._predict("explain", "images", batch)
            explanations += read_explanations(outputs, len(batch))
        return explanations

    def status(self) -> tuple[VersionStatus, ...]:
        """Returns the state of each version, or of the one asked for.

        Raises:
            SfmError: If no usable answer comes.
        """
        return read_status(self._get_status())

    def metadata(self) -> ModelMetadata:
        """Returns the version that answers and its signatures.

        Raises:
            SfmError: If no usable answer comes.
        """
        return read_metadata(self._get_metadata())

    def _image_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        checked = checked_images(images)
        bytes_per_image = BYTES_PER_VALUE * math.prod(checked.shape[1:])
        return map(np.stack, batches(checked, self.batch_size, lambda image: bytes_per_image))

    @abc.abstractmethod
    def _predict(
        self, signature_name: str, input_name: str, values: np.ndarray | Sequence[bytes]
    ) -> Outputs:
        """Returns the outputs of a signature with one input, for at least one image."""

    @abc.abstractmethod
    def _get_status(self) -> Any:
        """Returns a `GetModelStatusResponse` as JSON."""

    @abc.abstractmethod
    def _get_metadata(self) -> Any:
        """Returns a `GetModelMetadataResponse` as JSON."""
