import dataclasses
import json

import pytest

from sfm_tf.serving.performance import (
    BatchPerformance,
    Performance,
    describe_performance,
    read_performance,
)

PERFORMANCE = Performance(
    cpu_count=2,
    loaded_memory_bytes=700_000_000,
    batches=(
        BatchPerformance(1, 100, 0.00531, 0.0105, 830_332_928),
        BatchPerformance(64, 11, 0.46249, 1.5, 1_034_000_000),
    ),
)


def test_the_line_has_latency_and_memory_of_each_batch_size():
    assert describe_performance(PERFORMANCE) == (
        "on 2 CPUs, median, p95 and peak memory: batch 1 5.3 ms, 10.5 ms, 830 MB; "
        "batch 64 462.5 ms, 1,500.0 ms, 1,034 MB"
    )


def test_memory_that_the_system_does_not_tell_is_not_made_up():
    unknown = (dataclasses.replace(PERFORMANCE.batches[0], peak_memory_bytes=None),)
    line = describe_performance(dataclasses.replace(PERFORMANCE, batches=unknown))
    assert line.endswith("batch 1 5.3 ms, 10.5 ms, not measured")


def test_what_is_written_as_json_is_read_again():
    written = json.dumps(dataclasses.asdict(PERFORMANCE))
    assert read_performance(json.loads(written)) == PERFORMANCE


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
