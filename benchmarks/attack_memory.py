"""Measures the memory that one attack takes, in a process of its own.

    python -m benchmarks.attack_memory MODEL IMAGES OWNER ATTACK BATCH_SIZE SETTINGS

`measure_memory` starts this program, because a process that has run other attacks may still hold
memory that they freed. It reads the model and calls it once, resets the peak memory of the process
(Linux: 5 to `/proc/self/clear_refs`), and attacks one batch. The figure is the peak memory after
that (`VmHWM` of `/proc/self/status`) minus the memory before. It includes the compilation of the
attack, but not the libraries and not a GPU's memory.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from benchmarks.attack_rivals import RIVALS, build_rival, copy_to_torch, wrap_model
from benchmarks.attack_settings import Settings
from benchmarks.attacked_model import Target
from benchmarks.own_attacks import build_own

OWN = "own"
"""The owner's name of this library's attacks; the others are those of `RIVALS`."""


def measure_memory(
    target: Target, owner: str, attack: str, batch_size: int, settings: Settings
) -> float:
    """Returns the MiB that an attack of one batch adds to a process that holds the model.

    Args:
        target: Model and images.
        owner: `OWN` or a key of `RIVALS`.
        attack: A key of `KINDS` that the owner has.
        batch_size: Images of the batch, at most as many as there are.
        settings: Settings of the attack.

    Raises:
        subprocess.CalledProcessError: If the other process fails; what it wrote is passed on.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder, "model.keras"), Path(folder, "images.npz")
        target.model.save(model)
        np.savez(images, images=target.images[:batch_size], labels=target.labels[:batch_size])
        lengths = json.dumps(dataclasses.asdict(settings))
        program = [sys.executable, "-m", "benchmarks.attack_memory"]
        arguments = [str(model), str(images), owner, attack, str(batch_size), lengths]
        done = subprocess.run(program + arguments, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def main(arguments: list[str]) -> None:
    """Attacks one batch and prints the MiB that took as the last word."""
    model_file, images_file, owner, attack, batch_size, lengths = arguments
    model = keras.models.load_model(model_file, compile=False)
    with np.load(images_file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    settings, size = Settings(**json.loads(lengths)), int(batch_size)
    attacked = wrap_model(model, size)
    if owner == OWN:
        generate = build_own(attack, attacked.model, settings, size).generate
    else:
        if RIVALS[owner].is_torch:
            attacked = copy_to_torch(model, images)
        generate = build_rival(owner, attacked, settings, size)[attack]
    attacked.predict(images)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    generate(images, labels)
    print(_status("VmHWM") - before)


def _status(name: str) -> float:
    """Returns a size from the process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
