"""How fast a SavedModel answers, and how much memory it needs for that."""

import dataclasses
from collections.abc import Mapping
from typing import Any

MEASURED_BATCH_SIZES = (1, 8, 64)

SECONDS_PER_BATCH_SIZE = 5.0
"""How long calls of one batch size are repeated."""

MOST_CALLS = 100
"""Calls of one batch size that are timed at most."""

_MEGABYTE = 10**6


@dataclasses.dataclass(frozen=True)
class BatchPerformance:
    """What calls with batches of one size needed, after a warm-up.

    Attributes:
        batch_size: Images in a batch.
        calls: How many calls were timed.
        median_seconds: Median duration of a call.
        p95_seconds: Duration that 95 of 100 calls did not exceed.
        peak_memory_bytes: Most memory that the process had had resident by then, TensorFlow and
            the smaller batches included; None where the system does not tell.
    """

    batch_size: int
    calls: int
    median_seconds: float
    p95_seconds: float
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Performance:
    """What a fresh process measured on the CPU.

    Attributes:
        cpu_count: Processors of the machine.
        loaded_memory_bytes: Most memory that the process had had resident before the first call.
        batches: One entry for each batch size, in growing order.
    """

    cpu_count: int
    loaded_memory_bytes: int | None
    batches: tuple[BatchPerformance, ...]


def read_performance(value: Mapping[str, Any]) -> Performance:
    """Returns what `dataclasses.asdict` made of a `Performance`, or JSON of that."""
    batches = tuple(BatchPerformance(**batch) for batch in value["batches"])
    return Performance(**{**value, "batches": batches})


def describe_performance(performance: Performance) -> str:
    """Returns one line on latency and memory at each batch size."""
    batches = "; ".join(_describe_batch(batch) for batch in performance.batches)
    return f"on {performance.cpu_count} CPUs, median, p95 and peak memory: {batches}"


def _describe_batch(batch: BatchPerformance) -> str:
    peak = batch.peak_memory_bytes
    memory = "not measured" if peak is None else f"{peak / _MEGABYTE:,.0f} MB"
    median, p95 = (1000.0 * seconds for seconds in (batch.median_seconds, batch.p95_seconds))
    return f"batch {batch.batch_size} {median:,.1f} ms, {p95:,.1f} ms, {memory}"
