"""Why a server refuses a request, in gRPC's terms and in HTTP's."""

import enum

_LONGEST = 500  # gRPC sends it in a header, and clients may have put much of it together.


class Code(enum.Enum):
    """A reason for a refusal: the number of gRPC's status code, and HTTP's status for it.

    The pairs are those of TensorFlow Serving's `ToHTTPStatusCode`, save for TOO_LARGE: gRPC says
    RESOURCE_EXHAUSTED of a message over the limit, and HTTP has a status of its own for it.
    """

    INVALID_ARGUMENT = (3, 400)
    NOT_FOUND = (5, 404)
    TOO_LARGE = (8, 413)
    FAILED_PRECONDITION = (9, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)

    @property
    def grpc(self) -> int:
        """Number of the `grpc.StatusCode`."""
        return self.value[0]

    @property
    def http(self) -> int:
        """HTTP status."""
        return self.value[1]


class RequestError(Exception):
    """A request that is refused; unlike `SfmError`, a client's mistake and told to the client."""

    def __init__(self, code: Code, message: str) -> None:
        """Makes a refusal.

        Args:
            code: Its reason.
            message: One line for the client, cut off where it is long.
        """
        super().__init__(message[:_LONGEST])
        self.code = code
