"""Measures the server of `pipelines.serve`: load, abuse and memory.

    python -m benchmarks.serving --workdir=runs/cifar10
    python -m benchmarks.serving --workdir=runs/cifar10 --clients=1,64 --seconds=2 --minutes=0.2

Exports the workdir's defended model and its bare classifier, and serves both with one server, a
process of its own with those of Ray. Then, on the same machine and in the same minutes:

- load: 1 to 64 clients, each of which sends one image at a time: as pixels over REST, as PNG file
  over REST, as pixels over gRPC. Defended and undefended take turns, so that a busy machine slows
  both alike. Answers per second, latencies in milliseconds, and the ratio of the two medians;
- abuse: --malformed requests that must be refused. Each answer is compared with the right one, and
  after each kind a good request must be answered as before;
- memory of all the server's processes over --minutes of load, and the slope of a line through it.

The clients are threads of this one process, which shares the machine with the server.
"""

import argparse
import base64
import collections
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import psutil

from benchmarks.serving_abuse import (
    PREDICT_METHOD,
    TIMEOUT,
    Address,
    Subject,
    abuse,
    file_request,
    image_file,
    predict_request,
)
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.training.model_files import load_defended_model

_ROOT = Path(__file__).resolve().parents[1]
_MODELS = ("defended", "undefended")
_GOAL = 1.5
_TURNS = 4
_IMAGES = 64
_MEBIBYTE = 2**20


def export_models(workdir: Path, folder: Path) -> np.ndarray:
    """Exports the two models, and returns images for them."""
    run_directory = RunDirectory(workdir)
    models = run_directory.latest("train")
    records = run_directory.input_of(models, "ingest")
    schema = read_schema(records.folder)
    defended = load_defended_model(models.folder)
    for name, model in zip(_MODELS, (defended, DefendedModel(defended.classifier)), strict=True):
        (folder / name).mkdir()
        export_saved_model(model, schema.class_names, folder / name / "1")
    return load_split(records.folder, "test", schema, _IMAGES)[0]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[tuple[int, Address]]:
    """Runs the program that serves, and waits until it does; yields its process id and address."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", first.getsockname()[1], second.getsockname()[1])
    command = [
        *(sys.executable, "-m", "pipelines.serve"),
        "--model_dir=" + ",".join(str(folder / name) for name in _MODELS),
        f"--rest_port={address.rest_port}",
        f"--grpc_port={address.grpc_port}",
    ]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if not any(line.startswith("gRPC: ") for line in process.stdout):
                raise SystemExit("The server did not start.")
            yield process.pid, address
        finally:
            process.terminate()
            process.wait(60)


Send = Callable[[bytes], bool]
"""Sends a request; returns whether the answer was no error."""


@contextlib.contextmanager
def rest_client(address: Address, model: str) -> Iterator[Send]:
    """Opens a connection that is kept for all requests."""
    connection = http.client.HTTPConnection(address.host, address.rest_port, timeout=TIMEOUT)

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
                call(message, timeout=TIMEOUT)
            except grpc.RpcError:
                return False
            return True

        yield send


def _pixels(image: np.ndarray, model: str) -> bytes:
    del model
    return json.dumps({"instances": [image.tolist()]}).encode()


def _file(image: np.ndarray, model: str) -> bytes:
    del model
    return file_request(base64.b64encode(image_file(image, ".png")).decode())


def _message(image: np.ndarray, model: str) -> bytes:
    return predict_request(image, model).SerializeToString()


PROTOCOLS = {
    "rest": (rest_client, _pixels),
    "files": (rest_client, _file),
    "grpc": (grpc_client, _message),
}
"""The client of a protocol, and what makes its request for an image to a model."""


class Load(NamedTuple):
    """What clients saw.

    Attributes:
        latencies: Seconds from each request to its answer.
        seconds: How long they asked.
        failures: Answers that were errors.
    """

    latencies: np.ndarray
    seconds: float
    failures: int

    def figures(self) -> str:
        """Returns answers per second, and percentiles of the latency in milliseconds."""
        percentiles = np.percentile(self.latencies, (50, 95, 99)) * 1000
        rate = len(self.latencies) / self.seconds
        return f"{rate:9.1f} " + " ".join(f"{percentile:7.1f}" for percentile in percentiles)


def load(
    address: Address, model: str, protocol: str, images: np.ndarray, clients: int, seconds: float
) -> Load:
    """Lets clients ask for a while, each its next request when the last is answered."""
    client, make_request = PROTOCOLS[protocol]
    requests = [make_request(image, model) for image in images]
    latencies: list[list[float]] = [[] for _ in range(clients)]
    failures = [0] * clients
    start = threading.Barrier(clients + 1)
    stop = threading.Event()

    def ask(place: int) -> None:
        with client(address, model) as send:
            send(requests[place % len(requests)])  # Connects.
            start.wait()
            turn = place
            while not stop.is_set():
                begun = time.perf_counter()
                succeeded = send(requests[turn % len(requests)])
                latencies[place].append(time.perf_counter() - begun)
                failures[place] += not succeeded
                turn += clients

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begun
    return Load(np.concatenate(latencies), elapsed, sum(failures))


def print_load(address: Address, images: np.ndarray, options: argparse.Namespace) -> None:
    """Prints a line for each protocol and number of clients."""
    print("                     defended                           undefended")
    columns = "answers/s     p50     p95     p99"
    print(f"protocol  clients  {columns}   {columns}   p50 ratio  goal  errors")
    for protocol in options.protocols:
        for count in options.clients:
            turns: dict[str, list[Load]] = collections.defaultdict(list)
            for _ in range(_TURNS):
                for model in _MODELS:
                    seconds = options.seconds / _TURNS
                    turns[model].append(load(address, model, protocol, images, count, seconds))
            sides = [
                Load(np.concatenate(latencies), sum(seconds), sum(failures))
                for latencies, seconds, failures in (
                    zip(*turns[model], strict=True) for model in _MODELS
                )
            ]
            ratio = np.divide(*(np.median(side.latencies) for side in sides))
            print(
                f"{protocol:8}  {count:7}  {'   '.join(side.figures() for side in sides)}   "
                f"{ratio:9.2f}  {_GOAL:4}  {sum(side.failures for side in sides):6}",
                flush=True,
            )


def process_sizes(process_id: int) -> dict[str, float]:
    """Returns the MiB of a process and of those below it, by name, and of all together.

    The figure is the proportional set size: a page that several share counts once among them.
    """
    root = psutil.Process(process_id)
    sizes: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            # Ray adds to the name of a process what it is doing.
            name = f"{process.name().partition('.')[0]} {process.pid}"
            sizes[name] = process.memory_full_info().pss / _MEBIBYTE
    return {"all": sum(sizes.values()), **sizes}


def print_memory(
    process_id: int, address: Address, images: np.ndarray, options: argparse.Namespace
) -> None:
    """Prints what the server's processes hold while clients ask for some minutes."""
    seconds = options.minutes * 60
    samples: list[tuple[float, dict[str, float]]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(min(1.0, seconds / 20)):
            samples.append((time.monotonic(), process_sizes(process_id)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    seen = load(address, _MODELS[0], "rest", images, options.memory_clients, seconds)
    stop.set()
    thread.join()
    print(f"{len(seen.latencies)} answers in {options.minutes:g} minutes, {seen.failures} errors")
    print("process                          first MiB  last MiB  largest MiB  MiB/minute")
    # The first fifth of the time is left out: the server is still filling its caches.
    later = samples[len(samples) // 5 :]
    minutes = np.array([moment for moment, _ in later]) / 60
    for name in later[-1][1]:
        sizes = np.array([sizes.get(name, 0.0) for _, sizes in later])
        slope = np.polyfit(minutes - minutes[0], sizes, 1)[0]
        print(f"{name:32} {sizes[0]:9.1f} {sizes[-1]:9.1f} {sizes.max():12.1f} {slope:11.2f}")


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__.splitlines()[0])

    def add(name: str, default: object, meaning: str, **options: object) -> None:
        options.setdefault("type", type(default))
        parser.add_argument(
            f"--{name}", default=default, help=f"{meaning} (default: {default})", **options
        )

    def listed(kind: type) -> object:
        return lambda text: [kind(item) for item in text.split(",")]

    parser.add_argument("--workdir", type=Path, required=True, help="Where models were trained.")
    add("clients", "1,2,4,8,16,32,64", "Numbers of clients, comma-separated.", type=listed(int))
    add("protocols", ",".join(PROTOCOLS), "Protocols, comma-separated.", type=listed(str))
    add("seconds", 20.0, "Seconds of load for each model and number of clients.")
    add("malformed", 1000, "Malformed requests, about; 0 for none.")
    add("minutes", 10.0, "Minutes of load while memory is sampled; 0 for none.")
    add("memory_clients", 8, "Clients while memory is sampled.")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and returns 1 if an answer was wrong."""
    options = parse_flags(arguments)
    is_right = True
    with tempfile.TemporaryDirectory(prefix="sfm-serving-") as name:
        images = export_models(options.workdir, Path(name))
        with running_server(Path(name)) as (process_id, address):
            print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before the measurement")
            print_load(address, images, options)
            if options.malformed:
                is_right = abuse(Subject(address, _MODELS[0], images[0]), options.malformed)
            if options.minutes:
                print_memory(process_id, address, images, options)
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
