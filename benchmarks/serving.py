"""Loads and abuses the server of `pipelines.serve`, defended model beside undefended.

    python -m benchmarks.serving --workdir=runs/cifar10
    python -m benchmarks.serving --workdir=runs/cifar10 --clients=1,64 --seconds=2 --minutes=0.2

Exports the workdir's defended model and its bare classifier, and serves both with one server, a
process of its own with those of Ray. Then, of the same machine and the same minutes:

- load: 1 to 64 clients that each send an image at a time: as pixels over REST, as PNG file over
  REST, as pixels over gRPC. Defended and undefended take turns, so that a busy machine slows both
  alike. Answers per second, latencies in milliseconds, and the ratio of the two medians;
- abuse: --malformed requests that must be refused, each kind's answers compared with the right one,
  and after each kind a good request that must be answered as before;
- memory of all the server's processes over --minutes of load, and how much a line through it rises.

The clients are threads of this one process, which shares the machine with the server.
"""

import argparse
import collections
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.serving_abuse import Kind, Subject, all_kinds
from benchmarks.serving_load import (
    PROTOCOLS,
    Address,
    Seen,
    grpc_messages,
    joined,
    load,
    rest_bodies,
)
from benchmarks.serving_memory import Sampler, describe
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
_HEAVY = 10  # Requests of a heavy kind, at most.
_IMAGES = 64


class Server(NamedTuple):
    """The server's process and address."""

    process_id: int
    address: Address


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Runs the program that serves, and waits until it does."""
    address = Address("127.0.0.1", _free_port(), _free_port())
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
            yield Server(process.pid, address)
        finally:
            process.terminate()
            process.wait(60)


def print_load(address: Address, images: np.ndarray, options: argparse.Namespace) -> None:
    """Prints a line for each protocol and number of clients."""
    print("                     defended                           undefended")
    columns = "answers/s     p50     p95     p99"
    print(f"protocol  clients  {columns}   {columns}   p50 ratio  goal  errors")
    for protocol in options.protocols:
        requests = {model: PROTOCOLS[protocol].requests(images, model) for model in _MODELS}
        for count in options.clients:
            turns: dict[str, list[Seen]] = collections.defaultdict(list)
            for _ in range(_TURNS):
                for model in _MODELS:
                    seconds = options.seconds / _TURNS
                    seen = load(address, model, protocol, requests[model], count, seconds)
                    turns[model].append(seen)
            _print_load_line(protocol, count, [joined(turns[model]) for model in _MODELS])


def _print_load_line(protocol: str, count: int, seen: Sequence[Seen]) -> None:
    figures = "   ".join(
        f"{side.rate:9.1f} " + " ".join(f"{side.percentile(part):7.1f}" for part in (50, 95, 99))
        for side in seen
    )
    ratio = seen[0].percentile(50) / seen[1].percentile(50)
    failures = sum(side.failures for side in seen)
    print(f"{protocol:8}  {count:7}  {figures}   {ratio:9.2f}  {_GOAL:4}  {failures:6}", flush=True)


def print_abuse(subject: Subject, total: int) -> bool:
    """Prints a line for each kind of abuse; returns whether all answers were right."""
    kinds = all_kinds(has_files=True)
    light = sum(not kind.is_heavy for _, kind in kinds)
    heavy_count = min(_HEAVY, math.ceil(total / len(kinds)))
    light_count = math.ceil((total - heavy_count * (len(kinds) - light)) / light)
    expected = _good_answer(subject)
    sent = wrong = 0
    print("protocol  kind                              sent  right  expected              goes on")
    for protocol, kind in kinds:
        count = heavy_count if kind.is_heavy else light_count
        answers = _ask(subject, kind, count)
        right, goes_on = answers[kind.expected], _good_answer(subject) == expected
        others = ", ".join(f"{answer}: {times}" for answer, times in answers.items() if times)
        remark = "" if right == count else f"  got {others}"
        print(
            f"{protocol:8}  {kind.name:32}  {count:4}  {right:5}  {kind.expected:20}  "
            f"{'yes' if goes_on else 'NO'}{remark}",
            flush=True,
        )
        sent, wrong = sent + count, wrong + (count - right) + (not goes_on)
    print(f"{sent} requests, {wrong} wrong answers")
    return not wrong


def _ask(subject: Subject, kind: Kind, count: int) -> collections.Counter[str]:
    answers: collections.Counter[str] = collections.Counter()
    for number in range(count):
        try:
            answers[kind.ask(subject, np.random.default_rng(number))] += 1
        except OSError as error:  # The connection broke, which is a wrong answer.
            answers[type(error).__name__] += 1
    return answers


def _good_answer(subject: Subject) -> object:
    """Returns the answer to a good request by REST, if gRPC answers as well."""
    (body,) = rest_bodies(subject.image[None])
    (message,) = grpc_messages(subject.image[None], subject.model)
    with PROTOCOLS["grpc"].client(subject.address, subject.model) as send:
        if not send(message):
            return None
    connection = socket.create_connection(subject.address[:2], timeout=60)
    with connection, connection.makefile("rb") as answer:
        head = f"POST {subject.path}:predict HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        text = answer.read().partition(b"\r\n\r\n")[2]
    return json.loads(text)["predictions"][0]["class_id"]


def print_memory(server: Server, images: np.ndarray, minutes: float, clients: int) -> None:
    """Prints what the server's processes hold while clients ask for some minutes."""
    requests = PROTOCOLS["rest"].requests(images, _MODELS[0])
    interval = min(1.0, minutes * 60 / 20)
    with Sampler(server.process_id, interval) as sampler:
        seen = load(server.address, _MODELS[0], "rest", requests, clients, minutes * 60)
    print(f"{len(seen.latencies)} answers in {minutes:g} minutes, {seen.failures} errors")
    print(describe(sampler.samples))


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
    add("memory_clients", 8, "Clients meanwhile.")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and returns 1 if an answer was wrong."""
    options = parse_flags(arguments)
    is_right = True
    with tempfile.TemporaryDirectory(prefix="sfm-serving-") as name:
        images = export_models(options.workdir, Path(name))
        with running_server(Path(name)) as server:
            print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before the measurement")
            print_load(server.address, images, options)
            if options.malformed:
                subject = Subject(server.address, _MODELS[0], images[0])
                is_right = print_abuse(subject, options.malformed)
            if options.minutes:
                print_memory(server, images, options.minutes, options.memory_clients)
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
