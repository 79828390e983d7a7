"""Attacks of torchattacks, and those of AutoAttack's authors, with the benchmark's settings.

pyautoattack is the code of Croce and Hein's repository as a package; its `AutoAttack` is not used,
because it runs one attack only where the one before has failed. Importing this needs torch.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks.attack_libraries import Generate, Settings
from benchmarks.torch_copy import DEVICE, TorchCopy, from_torch, to_torch

_Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_torchattacks(
    model: TorchCopy, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns the attacks of torchattacks; it has CW-L2 without a search only."""
    attacks = {**_gradient_attacks(model, settings), **_long_attacks(model, settings)}
    return {name: _in_batches(attack, batch_size) for name, attack in attacks.items()}


def _gradient_attacks(model: TorchCopy, settings: Settings) -> dict[str, _Attack]:
    import torchattacks

    momentum = {
        "eps": settings.epsilon,
        "alpha": settings.momentum_step,
        "steps": settings.momentum_iterations,
    }
    return {
        "fgsm": torchattacks.FGSM(model, eps=settings.epsilon),
        "pgd": torchattacks.PGD(
            model,
            eps=settings.epsilon,
            alpha=settings.pgd_step,
            steps=settings.pgd_iterations,
            random_start=False,
        ),
        "mim": torchattacks.MIFGSM(model, **momentum),
        "di2": torchattacks.DIFGSM(model, **momentum, resize_rate=settings.smallest_share),
    }


def _long_attacks(model: TorchCopy, settings: Settings) -> dict[str, _Attack]:
    import torchattacks

    apgd = {"eps": settings.epsilon, "steps": settings.apgd_iterations}
    # Its FAB and APGDT go for one class less than there are "classes".
    targeted = {**apgd, "n_classes": settings.target_classes + 1}
    return {
        "cw_fixed": torchattacks.CW(
            model, c=1, steps=settings.cw_fixed_iterations, lr=settings.cw_fixed_learning_rate
        ),
        "apgd_ce": torchattacks.APGD(model, **apgd),
        "apgd_t": torchattacks.APGDT(model, **targeted),
        "fab_t": torchattacks.FAB(model, **targeted, multi_targeted=True),
        "square": torchattacks.Square(
            model, eps=settings.epsilon, n_queries=settings.square_queries
        ),
    }


def build_autoattack(
    model: TorchCopy, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns the parts of the original AutoAttack, with the options of its standard version."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    common = {"eps": settings.epsilon, "norm": "Linf", "seed": 0, "device": DEVICE}
    iterated = {**common, "n_iter": settings.apgd_iterations}
    targets = {"n_target_classes": settings.target_classes}
    attacks = {
        "apgd_ce": APGDAttack(model, **iterated, loss="ce"),
        "apgd_t": APGDAttack_targeted(model, **iterated, **targets),
        "fab_t": FABAttack_PT(model, **iterated, **targets, targeted=True),
        "square": SquareAttack(model, **common, n_queries=settings.square_queries),
    }
    return {name: _in_batches(attack.perturb, batch_size) for name, attack in attacks.items()}


def _in_batches(attack: _Attack, batch_size: int) -> Generate:
    def generate(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch_size):
            batch = to_torch(images[start : start + batch_size])
            classes = torch.tensor(labels[start : start + batch_size], device=DEVICE)
            parts.append(from_torch(attack(batch, classes)))
        return np.concatenate(parts)

    return generate
