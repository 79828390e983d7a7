"""Loads TensorFlow without the notes that its C++ part prints before any log level holds.

They come from static initialisers, several lines in every process, and would bury the one line per
stage. Import this module before anything that imports TensorFlow.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def hold_back_stderr() -> Iterator[None]:
    """Drops what the process, C++ included, writes to stderr; shows it if an error follows."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with hold_back_stderr():
    import tensorflow

tensorflow.get_logger().setLevel("WARNING")
