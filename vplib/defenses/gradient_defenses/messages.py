"""Defenses of a client's gradient, all of one form: `defend(gradients, model, images)`.

`gradients` are the messages of K clients, `images` (K, B, C, H, W) what each of them holds, `model`
what the server sent to all. What comes back are the K messages that leave. No client sees another's
images, and nothing that is passed in changes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vplib.victims import federated

Messages = Sequence[federated.Gradients]
_BY_ENTRY = nn.Tanh, nn.Sigmoid, nn.ReLU


def sensitivities(model: nn.Module, images: Tensor) -> Tensor:
    """How far each unit of the representation moves with the image, over how large it is.

    The representation r is what the last layer, which is linear, receives. The chain rule runs
    through the matrices of the layers, which are the same for all images.

    Args:
        model: an `nn.Sequential` that ends in a linear layer.
        images: (N, C, H, W).

    Returns:
        (N, units): the norm of the derivative of r_i by the image, over r_i (with its sign);
        infinite where r_i is zero.

    Raises:
        ValueError: the model is no such Sequential, or an image is not finite.

    Source:
        Sun et al., Soteria, CVPR 2021, as their code has it.
    """
    _representation(model)
    if not images.isfinite().all():
        raise ValueError("images must be finite: no unit can be ranked by NaN")
    with torch.no_grad():
        values = [images]
        for layer in model[:-1]:
            values.append(layer(values[-1].clone()))  # a layer may work in place
        r = values.pop().flatten(1)
        slopes = torch.eye(r.shape[1]).to(r).expand(len(r), -1, -1)
        for layer, x in zip(reversed(model[:-1]), reversed(values), strict=True):
            slopes = _through(layer, x, slopes)
        return (slopes.norm(dim=2) / r).nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)


def soteria(gradients: Messages, model: nn.Module, images: Tensor, *, share: float) -> list:
    """The messages without part of the representation: columns of one weight's gradient are zero.

    The units with the smallest `sensitivities`, summed over the client's images, go: large ones
    that hardly move with the image, so that it had to move far to make them vanish. All other
    entries, and the gradients of all other parameters, leave as they are, bit for bit.

    Args:
        gradients: K messages.
        model: an `nn.Sequential` that ends in a linear layer.
        images: (K, B, C, H, W).
        share: of the units, from 0 to 1 (the authors' code: 0.01).

    Raises:
        ValueError: the share is out of range, or messages, model and images do not fit.

    Source:
        Sun et al., Soteria, CVPR 2021, as their code has it. There a percentile decides how many
        units go; here the share is rounded to whole units.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], such as 0.6 for 60 %, not {share}")
    name = _representation(model)
    _check(gradients, images)
    scores = sensitivities(model, images.flatten(0, 1)).unflatten(0, images.shape[:2]).sum(1).abs()
    count = round(share * scores.shape[1])
    gone = scores.topk(count, largest=False).indices
    found = []
    for message, units in zip(gradients, gone, strict=True):
        value, wanted = message.values.get(name), tuple(model[-1].weight.shape)
        if value is None or tuple(value.shape) != wanted:
            raise ValueError(f"a message lacks {name}, the gradient of the last weight, {wanted}")
        value = value.index_fill(1, units, 0.0)
        found.append(federated.Gradients({**message.values, name: value}))
    return found


def clip_and_noise(
    gradients: Messages,
    model: nn.Module,
    images: Tensor,
    *,
    clip: float,
    sigma: float,
    generator: torch.Generator,
) -> list:
    """The messages clipped to a norm over all entries, with noise of `sigma` times that norm.

    Each client adds its own noise, for whom it distrusts is the server. Against the server one
    message of a client is one Gaussian mechanism: `accounting.epsilon([(sigma, 1.0, 1)], delta)`.

    Raises:
        ValueError: clip is not positive, sigma negative, or one of them or a message not finite.

    Source: Abadi et al., Deep learning with differential privacy, CCS 2016, with local noise.
    """
    if not (0 < clip < math.inf and 0 <= sigma < math.inf):
        raise ValueError(f"need a clip above 0 and a sigma of 0 or more, not {clip} and {sigma}")
    found = []
    for message in gradients:
        norm = sum(value.square().sum() for value in message.values.values()).sqrt()
        if not norm.isfinite():
            raise ValueError("a message is not finite, so that no clipping bounds it")
        factor = (clip / norm).clamp(max=1.0)

        def noisy(value, factor=factor):
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            return value * factor + clip * sigma * noise.to(value.device)

        found.append(message.map(noisy))
    return found


def _through(layer: nn.Module, x: Tensor, slopes: Tensor) -> Tensor:
    """Slopes (N, units, inputs) at a layer's inputs x (N, ...), from those at its outputs."""
    if isinstance(layer, nn.Flatten):
        return slopes
    if isinstance(layer, nn.Linear | nn.Conv2d):
        basis = torch.eye(x[0].numel()).to(x).unflatten(1, x.shape[1:])
        return slopes @ (layer(basis) - layer(torch.zeros_like(x[:1]))).flatten(1).mT
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (own,) = torch.autograd.grad(layer(x.clone()).sum(), x)
    return slopes * own.flatten(1)[:, None]


def _representation(model: nn.Module) -> str:
    """The name of the last weight, after a check that what it receives is a representation."""
    known = (nn.Linear, nn.Conv2d, nn.Flatten, *_BY_ENTRY)
    if not (
        isinstance(model, nn.Sequential)
        and len(model) > 1
        and isinstance(model[-1], nn.Linear)
        and all(isinstance(layer, known) for layer in model)
    ):
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(f"need an nn.Sequential of {names} that ends in Linear, not {model}")
    return f"{len(model) - 1}.weight"


def _check(gradients: Messages, images: Tensor) -> None:
    if images.ndim != 5 or not len(images) or not images.shape[1]:
        raise ValueError(f"images must be (clients, batch, C, H, W), not {tuple(images.shape)}")
    if len(gradients) != len(images):
        raise ValueError(f"{len(gradients)} messages, but images of {len(images)} clients")
