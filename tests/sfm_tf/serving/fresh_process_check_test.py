import subprocess
import sys

import numpy as np
import pytest

from sfm_tf.serving import fresh_process_check


@pytest.mark.parametrize(
    ("batch_size", "expected_batches"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (64, [5])]
)
def test_all_images_are_classified_once_in_order(batch_size, expected_batches):
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    batches = []

    def signature(batch):
        batches.append(len(batch))
        values = batch.reshape(-1, 1)
        return {"logits": values * [1.0, -1.0], "class_id": values[:, 0].astype(np.int64)}

    logits, class_ids = fresh_process_check.classify(signature, images, batch_size)
    assert batches == expected_batches
    np.testing.assert_array_equal(logits, [[0, 0], [1, -1], [2, -2], [3, -3], [4, -4]])
    np.testing.assert_array_equal(class_ids, [0, 1, 2, 3, 4])


def test_the_script_needs_nothing_of_the_library_to_start(tmp_path):
    command = [sys.executable, "-I", fresh_process_check.__file__]
    # Without arguments it fails where it unpacks them, so all it imports at the top was found.
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "not enough values to unpack" in process.stderr


def test_the_script_cannot_import_the_library(tmp_path):
    program = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(fresh_process_check.__file__).rsplit('/', 3)[0]!r})\n"
        "import sfm_tf\n"
        f"module = runpy.run_path({fresh_process_check.__file__!r})\n"
        "try:\n"
        "    module['main'](['missing', 'missing', 'missing'])\n"
        "except OSError:\n"
        "    pass\n"
        "import sfm_tf\n"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "import of sfm_tf halted" in process.stderr


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
