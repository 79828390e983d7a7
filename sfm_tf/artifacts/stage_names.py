"""Names of the stages that have no program of their own name."""

ADVERSARIAL_STAGE = "train_adversarially"
"""Stage of the models that `pipelines.train --adversarial_training` trains beside the others."""


def fit_stage(name: str) -> str:
    """Returns the stage whose artifact holds what an operation of a defence was fitted to."""
    return f"fit_{name}"
