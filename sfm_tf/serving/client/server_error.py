"""What a server, or the way to it, answered instead of an answer."""

from sfm_tf.errors import SfmError

LONGEST_MESSAGE = 500
"""Characters kept of a server's message; TensorFlow Serving repeats a whole bad request in it."""


class ServerError(SfmError):
    """A request that failed at the server or on the way.

    Attributes:
        code: HTTP status, such as "404", or gRPC status, such as "NOT_FOUND"; empty if no answer
            came.
        retryable: Whether the same request can succeed later.
        wait_seconds: How long the server asks to wait before that; 0 if it does not say.
    """

    def __init__(
        self, message: str, code: str = "", retryable: bool = False, wait_seconds: float = 0.0
    ) -> None:
        """Keeps the message as one line."""
        super().__init__(message)
        self.code, self.retryable, self.wait_seconds = code, retryable, wait_seconds


def one_line(text: str) -> str:
    """Returns a server's text as one line that is safe to print, cut off where it is long.

    Args:
        text: Whatever the server sent; control characters could steer a terminal.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."
