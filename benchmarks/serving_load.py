"""Clients that ask a server as fast as it answers, and what they saw."""

import base64
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

PREDICT_METHOD = "/tensorflow.serving.PredictionService/Predict"
_TIMEOUT = 120.0


class Address(NamedTuple):
    """Where a server is."""

    host: str
    rest_port: int
    grpc_port: int


class Seen(NamedTuple):
    """What clients saw.

    Attributes:
        latencies: Seconds from each request to its answer.
        seconds: How long they asked.
        failures: Answers that were errors.
    """

    latencies: np.ndarray
    seconds: float
    failures: int

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Returns the latency, in milliseconds, that so many percent do not exceed."""
        return float(np.percentile(self.latencies, percent)) * 1000


Send = Callable[[bytes], bool]
"""Sends a request; returns whether the answer was no error."""


def rest_bodies(images: np.ndarray) -> list[bytes]:
    """Returns a REST body of pixels for each image."""
    return [json.dumps({"instances": [image.tolist()]}).encode() for image in images]


def file_bodies(images: np.ndarray) -> list[bytes]:
    """Returns a REST body for each image as a PNG file."""
    return [
        json.dumps(
            {
                "signature_name": "predict_bytes",
                "instances": [{"b64": base64.b64encode(encode(image, ".png")).decode()}],
            }
        ).encode()
        for image in images
    ]


def encode(image: np.ndarray, extension: str) -> bytes:
    """Returns an image in [0, 1] as a file of the kind that `extension` names."""
    levels = np.rint(image[..., ::-1] * 255).astype(np.uint8)
    return cv2.imencode(extension, levels)[1].tobytes()


def grpc_messages(images: np.ndarray, model: str) -> list[bytes]:
    """Returns a serialized PredictRequest for each image."""
    messages = []
    for image in images:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(image[None]))
        messages.append(request.SerializeToString())
    return messages


@contextlib.contextmanager
def rest_client(address: Address, model: str) -> Iterator[Send]:
    """Opens a connection that is kept for all requests."""
    connection = http.client.HTTPConnection(address.host, address.rest_port, timeout=_TIMEOUT)

    def send(body: bytes) -> bool:
        connection.request("POST", f"/v1/models/{model}:predict", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200

    try:
        yield send
    finally:
        connection.close()


@contextlib.contextmanager
def grpc_client(address: Address, model: str) -> Iterator[Send]:
    """Opens a channel of its own, as another process would have."""
    del model  # The messages name it.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{address.host}:{address.grpc_port}", options) as channel:
        call = channel.unary_unary(PREDICT_METHOD)

        def send(message: bytes) -> bool:
            try:
                call(message, timeout=_TIMEOUT)
            except grpc.RpcError:
                return False
            return True

        yield send


Client = Callable[[Address, str], contextlib.AbstractContextManager[Send]]


class Protocol(NamedTuple):
    """A way to ask.

    Attributes:
        client: Opens a client.
        requests: Makes the requests for images to a model.
    """

    client: Client
    requests: Callable[[np.ndarray, str], list[bytes]]


PROTOCOLS = {
    "rest": Protocol(rest_client, lambda images, model: rest_bodies(images)),
    "files": Protocol(rest_client, lambda images, model: file_bodies(images)),
    "grpc": Protocol(grpc_client, grpc_messages),
}
"""REST with pixels, REST with PNG files, gRPC with pixels."""


def load(
    address: Address,
    model: str,
    protocol: str,
    requests: Sequence[bytes],
    count: int,
    seconds: float,
) -> Seen:
    """Lets clients ask for a while, each its next request when the last is answered.

    Args:
        address: The server.
        model: Name of the model.
        protocol: Key of `PROTOCOLS`.
        requests: What to send, in turns.
        count: Clients.
        seconds: How long.
    """
    latencies: list[list[float]] = [[] for _ in range(count)]
    failures = [0] * count
    start = threading.Barrier(count + 1)
    stop = threading.Event()

    def ask(place: int) -> None:
        with PROTOCOLS[protocol].client(address, model) as send:
            send(requests[place % len(requests)])  # Connects.
            start.wait()
            turn = place
            while not stop.is_set():
                begun = time.perf_counter()
                succeeded = send(requests[turn % len(requests)])
                latencies[place].append(time.perf_counter() - begun)
                failures[place] += not succeeded
                turn += count

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(count)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begun
    return Seen(np.concatenate(latencies), elapsed, sum(failures))


def joined(turns: Sequence[Seen]) -> Seen:
    """Returns several turns as one."""
    return Seen(
        np.concatenate([turn.latencies for turn in turns]),
        sum(turn.seconds for turn in turns),
        sum(turn.failures for turn in turns),
    )
