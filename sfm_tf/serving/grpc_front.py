"""A gRPC port that hands messages on as bytes."""

import functools
from collections.abc import Awaitable, Callable, Sequence

import grpc
from grpc import aio

from sfm_tf.errors import SfmError

Answer = Callable[[str, bytes], Awaitable[tuple[int, str, bytes]]]
"""From a method's path and a message to the status code's number, its details and the answer."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_WAITING = 256  # Requests at a time; a client beyond them is told to come again.


class _Front(grpc.GenericRpcHandler):
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


async def start_grpc_front(
    host: str, port: int, services: Sequence[str], answer: Answer, largest_message: int
) -> tuple[aio.Server, int]:
    """Starts to answer unary gRPC calls.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
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
    server.add_generic_rpc_handlers((_Front(services, answer),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise SfmError(
            f"Cannot listen on {host}:{port}; stop what does, or choose another port."
        ) from error
    await server.start()
    return server, bound
