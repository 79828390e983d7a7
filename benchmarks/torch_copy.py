"""A Keras classifier's copy in PyTorch, weight for weight.

Only for the layers that the benchmark's classifiers are made of. Importing this needs torch.
"""

from collections.abc import Callable, Mapping

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _SamePadding(nn.Module):
    """Zeros around images as Keras puts them: of an odd number, one more at the end."""

    def __init__(self, size: int, strides: int) -> None:
        super().__init__()
        self.size, self.strides = size, strides

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the padded images."""
        padding: list[int] = []
        for length in reversed(images.shape[2:]):
            outputs = -(-length // self.strides)
            missing = max((outputs - 1) * self.strides + self.size - length, 0)
            padding += [missing // 2, missing - missing // 2]
        return functional.pad(images, padding)


class _Normalization(nn.Module):
    """Subtracts a mean from each channel and divides by a deviation."""

    def __init__(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("deviation", _per_channel(deviation))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the normalised images."""
        return (images - self.mean) / self.deviation


class _Sum(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Returns the sum of both."""
        return first + second


class _Mean(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the mean of each channel."""
        return features.mean(dim=(2, 3))


def _per_channel(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(values, np.float32).reshape(1, -1, 1, 1))


def _normalization(layer: keras.layers.Normalization) -> nn.Module:
    mean = keras.ops.convert_to_numpy(layer.mean)
    variance = keras.ops.convert_to_numpy(layer.variance)
    return _Normalization(mean, np.maximum(np.sqrt(variance), keras.config.epsilon()))


def _convolution(layer: keras.layers.Conv2D) -> nn.Module:
    weights = layer.get_weights()
    (size, _), (strides, _) = layer.kernel_size, layer.strides
    channels, filters = weights[0].shape[2:]
    convolution = nn.Conv2d(channels, filters, size, stride=strides, bias=layer.use_bias)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(weights[0].transpose(3, 2, 0, 1)))
        if layer.use_bias:
            convolution.bias.copy_(torch.tensor(weights[1]))
    if strides == 1:
        convolution.padding = (size // 2, size // 2)
        return convolution
    return nn.Sequential(_SamePadding(size, strides), convolution)


def _batch_normalization(layer: keras.layers.BatchNormalization) -> nn.Module:
    normalization = nn.BatchNorm2d(layer.input.shape[-1], eps=layer.epsilon)
    scale, offset, mean, variance = map(torch.tensor, layer.get_weights())
    with torch.no_grad():
        normalization.weight.copy_(scale)
        normalization.bias.copy_(offset)
        normalization.running_mean.copy_(mean)
        normalization.running_var.copy_(variance)
    return normalization


def _dense(layer: keras.layers.Dense) -> nn.Module:
    kernel, bias = layer.get_weights()
    dense = nn.Linear(*kernel.shape)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor(kernel.T))
        dense.bias.copy_(torch.tensor(bias))
    return dense


_COPIES: Mapping[type[keras.Layer], Callable[[keras.Layer], nn.Module]] = {
    keras.layers.Normalization: _normalization,
    keras.layers.Conv2D: _convolution,
    keras.layers.BatchNormalization: _batch_normalization,
    keras.layers.ReLU: lambda _: nn.ReLU(),
    keras.layers.Add: lambda _: _Sum(),
    keras.layers.AveragePooling2D: lambda layer: nn.AvgPool2d(layer.pool_size, layer.strides),
    keras.layers.GlobalAveragePooling2D: lambda _: _Mean(),
    keras.layers.Dense: _dense,
}


class TorchCopy(nn.Module):
    """A Keras classifier without activations inside its layers, as a module in evaluation mode.

    No weight asks for a gradient, so that attacks in torch spend none on them.

    Args:
        model: Classifier of images `(batch, height, width, channels)`, each layer used once.
    """

    def __init__(self, model: keras.Model) -> None:
        """Copies every layer in the order of the model."""
        super().__init__()
        layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
        self._start, self._end = id(model.inputs[0]), id(model.outputs[0])
        self._inputs = [_identities(layer.input) for layer in layers]
        self._outputs = [id(layer.output) for layer in layers]
        self._copies = nn.ModuleList(_COPIES[type(layer)](layer) for layer in layers)
        self.eval().requires_grad_(False).to(DEVICE)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of float32 images in [0, 1], `(batch, channels, height, width)`."""
        features = {self._start: images}
        steps = zip(self._copies, self._inputs, self._outputs, strict=True)
        for module, inputs, output in steps:
            features[output] = module(*(features[name] for name in inputs))
        return features[self._end]


def _identities(tensors: keras.KerasTensor | list[keras.KerasTensor]) -> list[int]:
    return [id(tensor) for tensor in (tensors if isinstance(tensors, list) else [tensors])]


def to_torch(images: np.ndarray) -> torch.Tensor:
    """Returns channels-last images as torch wants them, on the device of the copy."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), device=DEVICE)


def from_torch(images: torch.Tensor) -> np.ndarray:
    """Returns torch's images with the channels last, float32."""
    return images.detach().cpu().numpy().astype(np.float32).transpose(0, 2, 3, 1)


def predict(model: TorchCopy, images: np.ndarray) -> np.ndarray:
    """Returns the copy's logits of channels-last images, float32 `(batch, classes)`."""
    with torch.no_grad():
        return model(to_torch(images)).cpu().numpy()
