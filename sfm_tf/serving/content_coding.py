"""HTTP's content codings of a request's body (RFC 9110, section 8.4.1), unpacked piece by piece.

A few kilobytes can unpack to gigabytes. So the pieces are small, and who takes them counts.
"""

import zlib
from collections.abc import Iterator
from typing import Protocol

from sfm_tf.serving.prediction_service import Code, RequestError

_PIECE = 2**16
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # Kinds of zlib's header.


class Decoder(Protocol):
    """Unpacks one body."""

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yields what the next part of the body unpacks to, in pieces of at most 64 KiB.

        Raises:
            RequestError: If the body is damaged.
        """

    def finish(self) -> None:
        """Raises `RequestError` if the body has ended too early."""


class _Identity:
    def decode(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def finish(self) -> None:
        pass


class _Zlib:
    """Unpacks gzip or deflate: one stream with nothing after it; an empty body is an empty one."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._stream: zlib._Decompress | None = None

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        if not chunk:
            return
        if self._stream is None:
            self._stream = zlib.decompressobj(self._header(chunk[0]))
        if self._stream.eof:
            raise self._damaged("data after its end")
        try:
            while piece := self._stream.decompress(chunk, _PIECE):
                yield piece
                chunk = self._stream.unconsumed_tail
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        if self._stream.unused_data:
            raise self._damaged("data after its end")

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise self._damaged("no end")

    def _header(self, first: int) -> int:
        if self._coding != "deflate":
            return _GZIP
        # Some clients leave out the header that deflate should have; the low bits tell.
        return _ZLIB if first & 0x0F == zlib.DEFLATED else _RAW

    def _damaged(self, found: str) -> RequestError:
        message = f"The body is no {self._coding} data: {found}"
        return RequestError(Code.INVALID_ARGUMENT, message)


def open_decoder(coding: str) -> Decoder:
    """Returns what unpacks a body.

    Args:
        coding: Value of the header Content-Encoding; empty where there is none.

    Raises:
        RequestError: If it is not one coding of gzip, deflate and identity.
    """
    name = coding.strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return _Identity()
    if name in ("gzip", "deflate"):
        return _Zlib(name)
    raise RequestError(
        Code.UNSUPPORTED_MEDIA_TYPE,
        f"Unknown Content-Encoding {coding[:80]!r}; expected gzip, deflate or identity",
    )
