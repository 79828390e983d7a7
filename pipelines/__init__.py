"""The stages as command-line programs: flags in, one library call, artifacts out.

Importing this package fixes the surroundings before TensorFlow is loaded: the backend, whatever
the user's `keras.json` says, and TensorFlow's start-up notes, which would bury the one line per
stage, are read once, at import. A value set by the user wins for the log. Ctrl-C while TensorFlow
is still loading, for seconds, ends in one line too.
"""

import os
import sys
import types
import warnings

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _report_uncaught(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Says in one line that Ctrl-C came while a program was still loading."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted before anything was done.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_uncaught
warnings.filterwarnings("ignore", message="PyTorch not found", category=UserWarning)
