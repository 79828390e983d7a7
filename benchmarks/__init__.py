"""Programs that compare this library with others."""

import os

# Before anything loads OpenMP: torch's threads otherwise spin while they wait, and on a machine
# with other work that made it 50 times slower, which would flatter this library.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
