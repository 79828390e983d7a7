"""Whether adversarial images keep to what the attacker was allowed."""

import numpy as np

# Adding a perturbation to a pixel rounds at 2^-24; the L2 norm sums that over an image.
_TOLERANCES = {np.inf: 1e-6, 2.0: 1e-5}


def perturbation_sizes(
    images: np.ndarray, adversarial_images: np.ndarray, norm: float
) -> np.ndarray:
    """Returns the norm of each image's perturbation.

    Args:
        images: Shape `(batch, height, width, channels)`.
        adversarial_images: Same shape.
        norm: Order of the norm: `math.inf` or 2.

    Returns:
        Float64 of shape `(batch,)`, in the units of the pixels.
    """
    difference = adversarial_images.astype(np.float64) - images.astype(np.float64)
    return np.linalg.norm(difference.reshape(len(images), -1), ord=norm, axis=1)


def faults(
    images: np.ndarray, adversarial_images: np.ndarray, epsilon: float, norm: float
) -> list[str]:
    """Returns a phrase for each way in which the adversarial images are not valid.

    Args:
        images: Float32 in [0, 1], shape `(batch, height, width, channels)`.
        adversarial_images: What an attack made of them.
        epsilon: Largest norm allowed of a perturbation, in the units of the pixels; `math.inf` for
            any norm.
        norm: Order of the norm: `math.inf` or 2.
    """
    if adversarial_images.shape != images.shape:
        return [f"their shape is {adversarial_images.shape} instead of {images.shape}"]
    if not np.isfinite(adversarial_images).all():
        return ["they hold NaN or infinite values"]
    found = []
    low, high = adversarial_images.min(), adversarial_images.max()
    if low < 0 or high > 1:
        found.append(f"their values run from {low:.9g} to {high:.9g} instead of within [0, 1]")
    largest = perturbation_sizes(images, adversarial_images, norm).max()
    if largest > epsilon + _TOLERANCES[norm]:
        found.append(f"a perturbation has norm {largest:.9g} instead of at most {epsilon:.9g}")
    return found
