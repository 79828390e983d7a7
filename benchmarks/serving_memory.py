"""The memory of a server and all processes that it started, sampled over a while."""

import contextlib
import threading
import time
from typing import NamedTuple

import numpy as np
import psutil

_MEBIBYTE = 2**20


class Sample(NamedTuple):
    """MiB of each process, by its name, at a time in seconds."""

    time: float
    sizes: dict[str, float]

    @property
    def total(self) -> float:
        """MiB of all."""
        return sum(self.sizes.values())


def sample(process_id: int) -> Sample:
    """Measures a process and those below it.

    The figure is the proportional set size: a page that several share counts once among them.
    """
    root = psutil.Process(process_id)
    sizes: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            # Ray adds to the name of a process what it is doing.
            name = f"{process.name().partition('.')[0]} {process.pid}"
            sizes[name] = process.memory_full_info().pss / _MEBIBYTE
    return Sample(time.monotonic(), sizes)


class Sampler:
    """Samples in the background, as a context."""

    def __init__(self, process_id: int, interval: float = 1.0) -> None:
        """Makes a sampler of a process and those below it, every `interval` seconds."""
        self.samples: list[Sample] = []
        self._process_id, self._interval = process_id, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sampler":
        """Begins."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.samples.append(sample(self._process_id))


def slope(times: np.ndarray, sizes: np.ndarray) -> float:
    """Returns the MiB per minute that a least-squares line through sizes rises."""
    return float(np.polyfit(times - times[0], sizes, 1)[0]) * 60


def describe(samples: list[Sample]) -> str:
    """Returns lines on the total and on each process that grew or is large.

    The first fifth of the time is left out: the server is still filling its caches.
    """
    later = samples[len(samples) // 5 :]
    times = np.array([each.time for each in later])
    names = ["all", *later[-1].sizes]
    lines = ["process                          first MiB  last MiB  largest MiB  MiB/minute"]
    for name in names:
        if name == "all":
            sizes = np.array([each.total for each in later])
        else:
            sizes = np.array([each.sizes.get(name, 0.0) for each in later])
        lines.append(
            f"{name:32} {sizes[0]:9.1f} {sizes[-1]:9.1f} {sizes.max():12.1f} "
            f"{slope(times, sizes):11.2f}"
        )
    return "\n".join(lines)
