"""Every defence in one table: what a report calls it, what it is made of, and who broke it.

Settings read this table, so it imports nothing of TensorFlow; `defences.chains` makes chains of it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sfm_tf.defences.settings import ComparedConfig

ALL = "all"

_GUO = "Athalye et al. 2018"  # It broke Guo et al. 2018.
_SQUEEZING = "He et al. 2017"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defence:
    """A defence that an evaluation can name.

    Attributes:
        title: Its name in reports.
        chain: Returns the pre-processing that it puts in front of the classifier, from the
            settings; None where a model is trained for it.
        made_from: What its operation, of the same name, has to be made from first: training images,
            by `pipelines.fit_defences`, or the classifier; None where it needs nothing.
        is_adversarially_trained: Whether its model is trained on adversarial images.
        broken_by: The publication whose adaptive attack broke it; None where none is known.
    """

    title: str
    chain: "Callable[[ComparedConfig], str] | None" = None
    made_from: Literal["training_images", "classifier"] | None = None
    is_adversarially_trained: bool = False
    broken_by: str | None = None


DEFENCES: Mapping[str, Defence] = {
    "undefended": Defence(title="no defence", chain=lambda config: "none"),
    "sfm": Defence(title="SFM-Defence"),
    "feature_squeezing": Defence(
        title="feature squeezing",
        chain=lambda config: config.feature_squeezing,
        broken_by=_SQUEEZING,
    ),
    "tvm": Defence(title="TVM", chain=lambda config: config.tvm, broken_by=_GUO),
    "quilting": Defence(
        title="quilting",
        chain=lambda config: config.quilting,
        made_from="training_images",
        broken_by=_GUO,
    ),
    "pixel_defend": Defence(
        title="PixelDefend",
        chain=lambda config: config.pixel_defend,
        made_from="training_images",
        broken_by="Athalye et al. 2018",
    ),
    "sensitivity": Defence(
        title="Sensitivity", chain=lambda config: config.sensitivity, made_from="classifier"
    ),
    "jpeg": Defence(title="JPEG", chain=lambda config: config.jpeg, broken_by=_GUO),
    "adversarial_training": Defence(title="adversarial training", is_adversarially_trained=True),
    "sfm_adversarial_training": Defence(
        title="SFM-Defence, adversarial training", is_adversarially_trained=True
    ),
}
"""The defences by name, in the order of tables."""

TRAINED = tuple(name for name, defence in DEFENCES.items() if defence.chain is None)
"""Those whose models are trained for them; the others are put in front of the same classifier."""

ADVERSARIALLY_TRAINED = tuple(
    name for name, defence in DEFENCES.items() if defence.is_adversarially_trained
)

FITTED = tuple(name for name, defence in DEFENCES.items() if defence.made_from == "training_images")
"""Operations that `pipelines.fit_defences` fits to training images."""

MADE = tuple(name for name, defence in DEFENCES.items() if defence.made_from)
"""Operations that are made from training images or from the classifier."""

_BROKEN: Mapping[str, str] = {
    **{name: defence.broken_by for name, defence in DEFENCES.items() if defence.broken_by},
    # Operations that broken defences are made of.
    "bit_depth": _SQUEEZING,
    "median": _SQUEEZING,
    "non_local_means": _SQUEEZING,
    "total_variation": _GUO,
}


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of defences with `all` replaced by those there are, each once.

    Args:
        names: Names of `DEFENCES`, chains or `all`.
    """
    listed = (each for name in names for each in (DEFENCES if name == ALL else (name,)))
    return tuple(dict.fromkeys(listed))


def broken_by(name: str) -> str | None:
    """Returns the publication that broke a defence; None where none is known.

    Args:
        name: A name of `DEFENCES`, or a chain of them and of operations joined by `+`.
    """
    for part in name.split("+"):
        for broken, publication in _BROKEN.items():
            if part == broken or part.startswith(f"{broken}_"):
                return publication
    return None
