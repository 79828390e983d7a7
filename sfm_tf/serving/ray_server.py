"""A server of SavedModels under Ray Serve, for where there is no container of TensorFlow Serving.

It answers TensorFlow Serving's REST routes and its gRPC services, and is contract-tested against
that API. Ray Serve brings the processes, the HTTP port, back-pressure and dynamic batching. The
gRPC port is this module's own: Ray Serve's listens on every interface of the machine, whatever the
host asked for, and takes messages of 2 GiB.

Ray itself opens ports for its own processes that other machines may reach. Each server makes a
token without which they refuse to talk. Ray is an optional package.
"""

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any

import grpc
from grpc import aio

from sfm_tf.errors import SfmError
from sfm_tf.serving.grpc_api import SERVICES, GrpcApi
from sfm_tf.serving.prediction_service import (
    Code,
    ModelRepository,
    Outputs,
    Prediction,
    RequestError,
    RequestLimits,
    run_merged,
    version_folders,
)
from sfm_tf.serving.rest_api import RestApi

Answer = Callable[[str, bytes], Awaitable[tuple[int, str, bytes]]]
"""From a method's path and a message to the status code's number, its details and the answer."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a server listens.

    Attributes:
        family: Kind of the address, `AF_INET` or `AF_INET6`.
        address: The numeric address.
        port: The port; 0 for a free one.
    """

    family: socket.AddressFamily
    address: str
    port: int

    @property
    def text(self) -> str:
        """Address and port as a URL has them."""
        host = f"[{self.address}]" if self.family == socket.AF_INET6 else self.address
        return f"{host}:{self.port}"


def resolve(host: str, port: int) -> Endpoint:
    """Returns the endpoint of a host's name or address, that of IPv4 where there are both.

    Raises:
        SfmError: If there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(f"{host}:{port}", error) from error
    family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return Endpoint(family, str(address[0]), port)


@contextlib.contextmanager
def reserved(endpoint: Endpoint) -> Iterator[None]:
    """Keeps other servers off an endpoint, before this one listens there and while it does.

    Ray Serve opens its port with SO_REUSEPORT: a second server could take it too, and would get
    part of the requests. A socket without that option cannot be bound where anyone listens. Two
    servers that start at the same moment are told apart by a socket's name, which Linux gives once.

    Args:
        endpoint: Where this server is going to listen.

    Raises:
        SfmError: If another program listens or starts there, or this machine may not.
    """
    with contextlib.ExitStack() as stack:
        try:
            if sys.platform == "linux":
                name = stack.enter_context(socket.socket(socket.AF_UNIX))
                name.bind(f"\0sfm_tf server {endpoint.text}")
            guard = stack.enter_context(socket.socket(endpoint.family))
            guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            guard.bind((endpoint.address, endpoint.port))
        except OSError as error:
            raise _cannot_listen(endpoint.text, error) from error
        yield


def _cannot_listen(where: str, error: Exception) -> SfmError:
    reason = getattr(error, "strerror", None) or error
    return SfmError(
        f"Cannot listen on {where}: {reason}; stop the program that does, or give another port or "
        "host."
    )


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_WAITING = 256  # Requests at a time; a client beyond them is told to come again.


class _Calls(grpc.GenericRpcHandler):
    """Hands the calls of some services on as bytes."""

    def __init__(self, services: Sequence[str], answer: Answer) -> None:
        self._services, self._answer = tuple(services), answer

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        method = handler_call_details.method
        if not method.startswith(self._services):
            return None
        return grpc.unary_unary_rpc_method_handler(functools.partial(self._call, method))

    async def _call(self, method: str, request: bytes, context: aio.ServicerContext) -> bytes:
        code, details, response = await self._answer(method, request)
        if code:
            await context.abort(_CODES[code], details)
        return response


async def start_grpc_server(
    endpoint: Endpoint, services: Sequence[str], answer: Answer, largest_message: int
) -> tuple[aio.Server, int]:
    """Starts to answer unary gRPC calls.

    Args:
        endpoint: Where to listen.
        services: What the paths of the methods that are answered start with.
        answer: Answers a message.
        largest_message: Bytes of the largest message that is read.

    Returns:
        The server, and its port.

    Raises:
        SfmError: If the port is taken.
    """
    options = [
        ("grpc.max_receive_message_length", largest_message),
        ("grpc.max_send_message_length", -1),
        # Else a second server could take the same port, and would get part of the requests.
        ("grpc.so_reuseport", 0),
    ]
    server = aio.server(options=options, maximum_concurrent_rpcs=_WAITING)
    server.add_generic_rpc_handlers((_Calls(services, answer),))
    try:
        bound = server.add_insecure_port(endpoint.text)
    except RuntimeError as error:
        raise _cannot_listen(endpoint.text, error) from error
    await server.start()
    return server, bound


_LIBRARY = pathlib.Path(__file__).resolve().parents[2]
_APPLICATION = "sfm"
_ONGOING = 128  # Requests that the model's process holds at a time.
_QUEUED = 256  # Requests that wait for it; more are told 503.
_OBJECT_STORE_BYTES = 2**30  # Ray's shared memory, where bodies over 100 kB pass through.


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How to serve.

    Attributes:
        models: Each model's folder of versions, by its name.
        host: Address that both ports listen on.
        rest_port: Port of HTTP.
        grpc_port: Port of gRPC.
        gpus: GPUs that the model's process gets; 0 for the CPU.
        batch_wait_seconds: How long a request waits for others to be merged with.
        poll_seconds: How often the folders are looked at for newer versions.
        limits: What one request may ask for.
    """

    models: Mapping[str, pathlib.Path]
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    gpus: float = 0
    batch_wait_seconds: float = 0.002
    poll_seconds: float = 2.0
    limits: RequestLimits = dataclasses.field(default_factory=RequestLimits)


class ModelServer:
    """The process that holds the models; Ray Serve makes one."""

    def __init__(self, settings: ServerSettings) -> None:
        """Loads the models and begins to watch for newer versions.

        Args:
            settings: How to serve.

        Raises:
            SfmError: If a model has no version that can be served.
        """
        from ray import serve

        limits = settings.limits
        self._repository = ModelRepository(settings.models)
        self._repository.refresh()
        if self._repository.missing():
            raise SfmError(" ".join(self._repository.failures()))

        async def run_batch(predictions: list[Prediction]) -> list[Outputs | RequestError]:
            return await asyncio.to_thread(run_merged, predictions, limits.batch_size)

        self._run_batch = serve.batch(
            run_batch,
            max_batch_size=limits.batch_size,
            batch_wait_timeout_s=settings.batch_wait_seconds,
        )
        self._rest = RestApi(self._repository, self._predict, limits)
        self._grpc = GrpcApi(self._repository, self._predict, limits)
        watch = threading.Thread(target=self._watch, args=(settings.poll_seconds,), daemon=True)
        watch.start()

    async def __call__(self, request: Any) -> Any:
        """Answers a REST request; takes and gives Starlette's objects."""
        from starlette.responses import Response

        length = request.headers.get("content-length", "")
        status, body = await self._rest.answer(
            request.method,
            request.url.path,
            int(length) if length.isdecimal() else None,
            request.stream(),
            request.headers.get("content-encoding", ""),
        )
        return Response(body, status, media_type="application/json")

    async def grpc(self, method: str, request: bytes) -> tuple[int, str, bytes]:
        """Answers a gRPC request with status code, details and message."""
        return await self._grpc.answer(method, request)

    async def _predict(self, prediction: Prediction) -> Outputs:
        result = await self._run_batch(prediction)
        if isinstance(result, RequestError):
            raise result
        return result

    def _watch(self, seconds: float) -> None:
        told: Sequence[str] = ()
        while True:
            time.sleep(seconds)
            try:
                self._repository.refresh()
            except OSError as error:
                logging.getLogger(__name__).warning("Cannot look for versions: %s", error)
            failures = self._repository.failures()
            if failures and failures != told:
                logging.getLogger(__name__).warning("%s", " ".join(failures))
            told = failures


def check_installed() -> None:
    """Raises `SfmError` unless Ray is there."""
    if importlib.util.find_spec("ray") is None:
        raise SfmError(
            "The server needs ray, which is not installed; run `make ray` or install "
            "requirements-ray.txt."
        )


def check_models(models: Mapping[str, pathlib.Path]) -> None:
    """Raises `SfmError` for a folder without a version of a model in it."""
    for name, folder in models.items():
        if not version_folders(folder):
            raise SfmError(
                f"No version of {name} in {folder}; expected a folder named by a number with "
                "saved_model.pb in it, as pipelines.export writes it."
            )


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Sets what Ray and the processes it starts read from the environment.

    That is: no reports of usage to Ray's makers, a token for Ray's own ports, which else it would
    write to the home directory, and where this library is.

    Args:
        environment: Where to set it, before Ray is imported.
    """
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in environment:
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    paths = [str(_LIBRARY), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


@contextlib.asynccontextmanager
async def running_server(settings: ServerSettings) -> AsyncIterator[tuple[str, str]]:
    """Serves for as long as the context lasts.

    Args:
        settings: How to serve.

    Yields:
        Address and port of REST and of gRPC, once the models answer.

    Raises:
        SfmError: If a package, a model or a port is not to be had.
    """
    rest, grpc_endpoint = _check(settings)
    with reserved(rest), reserved(grpc_endpoint):
        _prepare_for_ray()
        import ray
        from ray import serve

        try:
            _start_ray(ray, settings)
            handle = await _to_the_end(asyncio.to_thread(_deploy, serve, settings, rest))

            async def answer(method: str, request: bytes) -> tuple[int, str, bytes]:
                try:
                    return await handle.grpc.remote(method, request)
                except (serve.exceptions.RayServeException, ray.exceptions.RayError) as error:
                    logging.getLogger(__name__).warning("%s failed: %s", method, error)
                    words = "The server is busy or restarting; try again."
                    return Code.UNAVAILABLE.grpc, words, b""

            limit = settings.limits.body_bytes
            server, grpc_port = await start_grpc_server(grpc_endpoint, SERVICES, answer, limit)
            try:
                yield rest.text, dataclasses.replace(grpc_endpoint, port=grpc_port).text
            finally:
                await server.stop(grace=1.0)
                await asyncio.to_thread(_finish, serve)
        finally:
            await asyncio.to_thread(ray.shutdown)


def _check(settings: ServerSettings) -> tuple[Endpoint, Endpoint]:
    """Returns where REST and gRPC are to listen."""
    check_installed()
    check_models(settings.models)
    if settings.rest_port == settings.grpc_port:
        raise SfmError(f"REST and gRPC cannot share port {settings.rest_port}; give two ports.")
    ports = settings.rest_port, settings.grpc_port
    return resolve(settings.host, ports[0]), resolve(settings.host, ports[1])


def _prepare_for_ray() -> None:
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise SfmError(
            "Ray was imported before its token was set; start the server in a process of its own."
        )
    prepare_environment(os.environ)


@contextlib.contextmanager
def _told_in_one_line(advice: str) -> Iterator[None]:
    """Makes one line of whatever Ray raises when it starts: often another process's traceback."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise SfmError(
            f"The server does not start: {reason[:300].rstrip('.')}; {advice}"
        ) from error


async def _to_the_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Waits for a thread also if it is cancelled: with Ray gone, a thread would start it anew."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _start_ray(ray: Any, settings: ServerSettings) -> None:
    advice = "Ray keeps its files in TMPDIR, so set that to a short path that has room."
    handler = signal.getsignal(signal.SIGTERM)
    with _told_in_one_line(advice):
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=settings.gpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray's own handler would end this process in the middle of whatever it does.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _deploy(serve: Any, settings: ServerSettings, rest: Endpoint) -> Any:
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with _told_in_one_line("give another port or host, or start it again."):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": rest.address, "port": rest.port},
            logging_config=quiet,
        )
    deployment = serve.deployment(
        ModelServer,
        name="models",
        num_replicas=1,
        max_ongoing_requests=_ONGOING,
        max_queued_requests=_QUEUED,
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.gpus},
        logging_config=quiet,
    )
    try:
        return serve.run(deployment.bind(settings), name=_APPLICATION, route_prefix="/")
    except RuntimeError as error:
        statuses = serve.status().applications[_APPLICATION].deployments.values()
        reason = " ".join(" ".join(status.message for status in statuses).split())
        raise SfmError(f"The server does not start: {reason[-300:] or error}") from error


def _finish(serve: Any) -> None:
    """Lets the model's process end its requests.

    Not `serve.shutdown`: it kills the actor that it waits for, and Ray then prints on every stop
    that it will ask that actor for ever.
    """
    try:
        serve.delete(_APPLICATION)
    except Exception as error:  # The server stops all the same.
        logging.getLogger(__name__).warning("Requests under way were cut off: %s", error)
