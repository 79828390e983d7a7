"""What the probes of a model found, as `probes.json` holds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from sfm_tf.errors import SfmError

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Which images a model is right on.

    Attributes:
        examples: Number of images.
        correct: How many of them the model is right on.
        right: A 1 or a 0 for each image.
    """

    examples: int
    correct: int
    right: str

    @classmethod
    def of(cls, right: np.ndarray, **others: Any) -> Self:
        """Returns answers from whether the model is right, bool `(count,)`, and further fields."""
        text = "".join("1" if value else "0" for value in right)
        return cls(examples=len(right), correct=int(np.sum(right)), right=text, **others)

    def right_images(self) -> np.ndarray:
        """Returns whether the model is right on each image, bool of shape `(count,)`.

        Raises:
            SfmError: If the fields do not agree.
        """
        right = np.array([value == "1" for value in self.right], bool)
        agrees = (len(right), right.sum()) == (self.examples, self.correct)
        if set(self.right) - {"0", "1"} or not agrees:
            raise SfmError(
                f"Probe of {self.examples} images, {self.correct} right, holds {self.right!r}; run "
                "the evaluation again."
            )
        return right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far apart several answers to the same images are.

    Attributes:
        images: Images whose logits differ by more than rounding.
        labels: Images whose predicted class differs.
        largest: Largest difference of a logit, as a share of the largest logit of all.
    """

    images: int
    labels: int
    largest: float


_FEW_DIFFER = 0.1
"""Share of the images whose logits may differ: a rounding can flip a level of a quantiser."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeatability:
    """How alike a model's answers to the same images are.

    Attributes:
        examples: Number of images.
        side_by_side: Equal images beside each other in one batch.
        calls: The same batch in several calls.
        batches: The same images in other batches: in another order, by halves, one by one.
        lowest: Lowest output of all.
        highest: Highest output of all.
    """

    examples: int
    side_by_side: Difference
    calls: Difference
    batches: Difference
    lowest: float
    highest: float

    @property
    def kind(self) -> Literal["repeatable", "random", "changing", "batch"]:
        """What the answers depend on beside the image.

        `random` where equal images of a batch are answered differently; `changing` where only
        another call is, and `batch` where only another batch is.
        """
        if self._differs(self.side_by_side):
            return "random"
        if self._differs(self.calls):
            return "changing"
        return "batch" if self._differs(self.batches) else "repeatable"

    def _differs(self, found: Difference) -> bool:
        return found.images > _FEW_DIFFER * self.examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbedModel:
    """The parts of the model under test; `surrogate` is that of its pre-processing."""

    masker: bool
    preprocessor: str
    surrogate: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How many images were attacked, and by which PGD; radius and step in 1/255."""

    examples: int
    seed: int
    norm: str
    epsilon: float
    step_size: float
    iterations: int
    gradient_samples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtRadius(Answers):
    """The answers under PGD at the radius `epsilon`, in 1/255; that of 0 is without an attack."""

    epsilon: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convergence:
    """The answers under PGD that takes more, longer or shorter steps.

    Attributes:
        base: Under the settings of the evaluation with one random start.
        single_step: One step of the radius.
        double_iterations: Twice the steps.
        more_restarts: More random starts, of which the first counts too.
        half_step: Half the step.
        double_step: Twice the step.
        restarts: Number of starts of `more_restarts`.
    """

    base: Answers
    single_step: Answers
    double_iterations: Answers
    more_restarts: Answers
    half_step: Answers
    double_step: Answers
    restarts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AfterSteps:
    """The loss after some steps of PGD.

    Attributes:
        steps: Number of steps.
        median_loss: Median of the stable cross-entropy on the attacked model.
        mean_loss: Its mean.
        success: Share of the images that the scored model is wrong on.
    """

    steps: int
    median_loss: float
    mean_loss: float
    success: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageGradient:
    """The gradient of the loss at one stage of the model.

    Attributes:
        stage: One of `sfm_tf.audit.probes.stage_gradients.STAGES`.
        connected: Whether the loss depends on the stage differentiably.
        median_norm: Median L2 norm of the gradient.
        zero_share: Share of the images where all of it is zero.
        not_finite_share: Share of the images where an entry is NaN or infinite.
    """

    stage: str
    connected: bool = True
    median_norm: float
    zero_share: float
    not_finite_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossGradient:
    """The shares of images without any gradient, and of those whose label's logit has none."""

    zero_share: float
    label_blind_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientHealth:
    """The gradient of the stable loss at each stage, and that of each loss, by its name."""

    stages: tuple[StageGradient, ...]
    losses: Mapping[str, LossGradient]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnderSurrogate(Answers):
    """The answers under PGD by one way to get past the pre-processing.

    Attributes:
        surrogate: `identity`, `smooth`, or `ignored` for an attacker who leaves it out.
        used: Whether the evaluation's white box uses it.
    """

    surrogate: str
    used: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsAnswers:
    """The answers with some parts of the defence, without and under an attack in the white box."""

    masker: bool
    preprocessor: bool
    clean: Answers
    attacked: Answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownBreaks:
    """How PGD fares on defences that it has to break.

    Attributes:
        bare_clean: The bare classifier without an attack.
        bare: The same under PGD.
        bit_depth: With a bit depth of 3 before it.
        scaled: With its logits scaled.
        factor: What they are scaled by.
        plain_blind_share: Share of the images whose label's logit has no gradient there in the
            plain loss.
        stable_blind_share: The same in the stable loss.
        saturated_zero_share: Share of the images that the attack itself calls without a gradient
            where the factor is larger.
    """

    bare_clean: Answers
    bare: Answers
    bit_depth: Answers
    scaled: Answers
    factor: float
    plain_blind_share: float
    stable_blind_share: float
    saturated_zero_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseAnswers:
    """The answers under random noise.

    Attributes:
        uniform: Under the worst of 100 points of the ball for each image.
        gaussian: Under noise of the L2 norm that PGD's perturbation of the image has, clipped to
            [0, 1].
        gaussian_l2: Its median norm after that.
    """

    uniform: Answers
    gaussian: Answers
    gaussian_l2: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquareAnswers(Answers):
    """The answers on the first images that were left, under Square.

    Attributes:
        queries: Most queries for each image.
        survivors: How many images were left.
    """

    queries: int
    survivors: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transferred(Answers):
    """The answers on images that PGD made on another model.

    Attributes:
        source: `independent`, or `bare` for the classifier without its defence.
    """

    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetedAnswers(Answers):
    """The answers under targeted PGD, and on how many images it `reached` its class."""

    reached: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class InNorm(AtRadius):
    """The answers under PGD in another norm, `inf` or `2`."""

    norm: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redrawn(Answers):
    """The answers on what PGD made, with noise below half a grey level added, several times.

    Attributes:
        copies: How many noisy copies of each image were shown; one wrong answer counts.
    """

    copies: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """The answers for each draw of a random model, without and under PGD."""

    clean: tuple[Answers, ...]
    attacked: tuple[Answers, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probes:
    """Everything that shows whether the attacks on a model were as strong as they could be.

    Each is what the function `probe_*` of its name returns, `gradients` what `gradient_health`
    does. `no_radius` is under PGD at a radius of 0, and `margin` under PGD on the margin of the
    logits, which has no scale. `draws` is None unless the model is random.
    """

    schema_version: int = SCHEMA_VERSION
    subject: ProbedModel
    settings: ProbeSettings
    no_radius: Answers
    ladder: tuple[AtRadius, ...]
    convergence: Convergence
    margin: Answers
    curve: tuple[AfterSteps, ...]
    gradients: GradientHealth
    surrogates: tuple[UnderSurrogate, ...]
    parts: tuple[PartsAnswers, ...]
    known_breaks: KnownBreaks
    noise: NoiseAnswers
    square: SquareAnswers
    transfer: tuple[Transferred, ...]
    targeted: TargetedAnswers
    other_norm: InNorm
    redrawn: Redrawn
    draws: Draws | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `probes.json`, where `draws` is there only if it was measured."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}
