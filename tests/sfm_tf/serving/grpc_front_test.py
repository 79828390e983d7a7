import asyncio

import grpc
import pytest
from grpc import aio

from sfm_tf.errors import SfmError
from sfm_tf.serving.grpc_front import start_grpc_front

SERVICES = ("/toy.Echo/",)


async def echo(method, request):
    if request == b"fail":
        return 5, "no such thing", b""
    return 0, "", method.encode() + b" " + request


def ask(method, request, largest_message=1000):
    """Returns the answer, or the status code and details of the refusal."""

    async def converse():
        server, port = await start_grpc_front("127.0.0.1", 0, SERVICES, echo, largest_message)
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await channel.unary_unary(method)(request, timeout=20)
        except aio.AioRpcError as error:
            return error.code(), error.details()
        finally:
            await server.stop(None)

    return asyncio.run(converse())


def test_messages_pass_as_bytes():
    assert ask("/toy.Echo/Say", b"\0\xff") == b"/toy.Echo/Say \0\xff"


def test_refusals_keep_code_and_details():
    assert ask("/toy.Echo/Say", b"fail") == (grpc.StatusCode.NOT_FOUND, "no such thing")


def test_other_services_are_unimplemented():
    code, _ = ask("/toy.Other/Say", b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_messages_over_the_limit_are_refused():
    assert ask("/toy.Echo/Say", b"x" * 1000).endswith(b"x")
    code, details = ask("/toy.Echo/Say", b"x" * 1001)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1001 vs. 1000" in details


def test_listens_where_it_is_told_and_nowhere_else():
    async def start():
        server, port = await start_grpc_front("127.0.0.1", 0, SERVICES, echo, 1000)
        try:
            with pytest.raises(SfmError, match=f"Cannot listen on 127.0.0.1:{port}"):
                await start_grpc_front("127.0.0.1", port, SERVICES, echo, 1000)
            # Free on another address of the machine, so the first does not listen on all.
            other, other_port = await start_grpc_front("127.0.0.2", port, SERVICES, echo, 1000)
            await other.stop(None)
            return port == other_port
        finally:
            await server.stop(None)

    assert asyncio.run(start())


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
