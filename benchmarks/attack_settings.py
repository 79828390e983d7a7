"""The settings that the attacks of all libraries share."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.measuring import Criterion


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lengths of the attacks, and their radius.

    Attributes:
        epsilon: Largest change of a pixel, of all attacks but CW-L2.
        pgd_iterations: Steps of PGD, each of 1/255.
        momentum_iterations: Steps of MIM and DI2, each of 2/255; both numbers are torchattacks'.
        smallest_share: Smallest size of DI2's views over the full size.
        cw_searches: Values of the constant that CW-L2 tries.
        cw_iterations: Steps of CW-L2 for each.
        cw_constant: First value of the constant.
        cw_fixed_iterations: Steps of CW-L2 with a constant of 1, torchattacks' only form.
        cw_learning_rate: Size of Adam's steps; so few of 0.01 do not reach every boundary. ART has
            a line search in place of it.
        cw_fixed_learning_rate: The same with a constant of 1; torchattacks' own.
        apgd_iterations: Steps of a run of APGD and FAB-T.
        target_classes: Classes that APGD-T and FAB-T go for.
        square_queries: Queries of Square.
    """

    epsilon: float = 8 / 255
    pgd_iterations: int = 30
    momentum_iterations: int = 10
    smallest_share: float = 0.9
    cw_searches: int = 5
    cw_iterations: int = 20
    cw_constant: float = 0.1
    cw_fixed_iterations: int = 50
    cw_learning_rate: float = 0.03
    cw_fixed_learning_rate: float = 0.01
    apgd_iterations: int = 100
    target_classes: int = 9
    square_queries: int = 5000

    @property
    def pgd_step(self) -> float:
        """Size of PGD's steps."""
        return 1 / 255

    @property
    def momentum_step(self) -> float:
        """Size of MIM's and DI2's steps."""
        return 2 / 255


class Kind(NamedTuple):
    """What the benchmark knows of an attack.

    Attributes:
        title: What the tables call it.
        is_slow: Whether it takes hundreds of steps per image, so that only a few are attacked.
        is_deterministic: Whether all libraries are to make the same images of it.
        norm: In which its perturbations are measured: 2 or `math.inf`.
        is_bounded: Whether success has to be within the radius.
    """

    title: str
    is_slow: bool = False
    is_deterministic: bool = False
    norm: float = 2
    is_bounded: bool = True

    def criterion(self, epsilon: float) -> Criterion:
        """Returns when it has succeeded."""
        return Criterion(epsilon if self.is_bounded else math.inf, self.norm)


KINDS: Mapping[str, Kind] = {
    "fgsm": Kind("FGSM", is_deterministic=True),
    "pgd": Kind("PGD", is_deterministic=True),
    "mim": Kind("MIM", is_deterministic=True),
    "di2": Kind("DI2"),
    "cw": Kind("CW-L2", is_slow=True, is_bounded=False),
    "cw_fixed": Kind("CW-L2 c=1", is_slow=True, is_bounded=False),
    "apgd_ce": Kind("APGD-CE", is_slow=True),
    "apgd_t": Kind("APGD-T", is_slow=True),
    "fab_t": Kind("FAB-T", is_slow=True, norm=math.inf),
    "square": Kind("Square", is_slow=True),
}
"""The attacks by name, in the order of the tables."""
