"""The stages as command-line programs: flags in, one library call, artifacts out.

Importing this package fixes the surroundings before TensorFlow is loaded, because both settings
are read once, at import: the backend, whatever the user's `keras.json` says, and TensorFlow's
start-up notes, which would bury the one line per stage. A value set by the user wins for the log.
"""

import os
import warnings

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.filterwarnings("ignore", message="PyTorch not found", category=UserWarning)
