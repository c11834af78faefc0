"""Many small models of one architecture as one: their weights stacked, one product for all.

A state is a dictionary from a parameter's name to the K models' values, (K, ...). `training`
decides what is trained on what; here is only how K forward and backward passes become one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adam import adam
from torch.optim.sgd import sgd

State = dict[str, Tensor]
Gradients = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]
_LOOP_ONLY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def wins(model: nn.Module, images: Tensor) -> bool:
    """Whether stacked weights beat one model after another (measured, tests/benchmarks)."""
    if images.device.type != "cpu":
        return True
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    plain = isinstance(model, nn.Sequential)
    return plain and (not convolutions or images.shape[-1] <= 16)


def forward_of(net: nn.Module) -> Callable[[State, Tensor], Tensor] | None:
    """The forward pass of K models like this one, or None if there is none.

    Linear layers become one batched product, convolutions one grouped convolution on
    (B, K * C, H, W); any other architecture goes through vmap.

    Returns:
        A function from a stacked state and inputs (K, B, ...) to logits (K, B, classes).
    """
    if (
        any(isinstance(m, _LOOP_ONLY) for m in net.modules())
        or next(net.buffers(), None) is not None
        or not all(p.requires_grad for p in net.parameters())
    ):
        return None
    if type(net) is not nn.Sequential or not all(_is_plain(m) for m in net):
        base = net.to("meta")
        return vmap(lambda state, x: functional_call(base, state, (x,)))

    def forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
        num_models, packed = len(x), False
        for i, layer in enumerate(net):
            weight, bias = state.get(f"{i}.weight"), state.get(f"{i}.bias")
            if isinstance(layer, nn.Conv2d):
                if not packed:
                    x, packed = x.transpose(0, 1).flatten(1, 2), True
                bias = None if bias is None else bias.flatten()
                groups = num_models * layer.groups
                shape = (layer.stride, layer.padding, layer.dilation, groups)
                x = F.conv2d(x, weight.flatten(0, 1), bias, *shape)
            elif isinstance(layer, nn.Linear):
                bias = 0 if bias is None else bias.unsqueeze(1)
                x = x @ weight.transpose(1, 2) + bias
            elif isinstance(layer, nn.Flatten):
                x = x.view(len(x), num_models, -1).transpose(0, 1) if packed else x.flatten(2)
                packed = False
            elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and not packed:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            else:
                x = layer(x)
        return x

    return forward


def _is_plain(layer: nn.Module) -> bool:
    """Whether the batched forward knows this layer; a subclass may compute something else."""
    layers = (nn.Linear, nn.Conv2d, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.Tanh)
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return False
    return type(layer) in layers and getattr(layer, "padding_mode", "zeros") == "zeros"


def by_autograd(forward: Callable[[State, Tensor], Tensor], state: State) -> Gradients:
    """Gradients of all models by autograd; the sum over models does not mix their gradients.

    Returns:
        A function from inputs (K, B, ...) and labels (K, B) or (K, B, classes) to the loss
        summed over models, and the gradients in the order of the state.
    """
    parameters = list(state.values())

    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = forward(state, x)
        flat = y.flatten(0, 1)
        loss = F.cross_entropy(logits.flatten(0, 1), flat, reduction="sum") / x.shape[1]
        found = torch.autograd.grad(loss, parameters)
        return loss.detach(), [g.contiguous() for g in found]  # fused updates ignore strides

    return gradients


def closed_form(net: nn.Module, state: State) -> Gradients | None:
    """Gradients of all models of a ReLU or tanh MLP by hand, or None for other models.

    Half the cost of autograd at these sizes, where the time goes into calls, not products.

    Returns:
        A function as `by_autograd` returns it.
    """
    plain = type(net) is nn.Sequential and all(_is_plain(m) for m in net)
    body = list(net)[1:] if plain and type(net[0]) is nn.Flatten else []
    linear, between = body[::2], {type(m) for m in body[1::2]}
    if (
        len(body) % 2 == 0
        or not all(type(m) is nn.Linear and m.bias is not None for m in linear)
        or not between <= {nn.ReLU, nn.Tanh}
        or len(between) > 1
    ):
        return None
    tanh = nn.Tanh in between
    names = [f"{1 + 2 * i}" for i in range(len(linear))]
    weights = [state[f"{name}.weight"] for name in names]
    biases = [state[f"{name}.bias"] for name in names]

    @torch.no_grad()
    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        inputs = [x.flatten(2)]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            z = torch.baddbmm(bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
            inputs.append(z.tanh_() if tanh else z.relu_())
        logits = torch.baddbmm(biases[-1].unsqueeze(1), inputs[-1], weights[-1].transpose(1, 2))
        error = logits.softmax(-1)  # minus the target: the gradient of the logits
        if y.ndim == 2:
            index = y.unsqueeze(-1)
            loss = -error.gather(2, index).clamp_min(1e-38).log().sum()
            error.scatter_add_(2, index, error.new_full((1, 1, 1), -1.0).expand(index.shape))
        else:
            loss = -(error.clamp_min(1e-38).log() * y).sum()
            error -= y
        error /= x.shape[1]
        found = {}
        for name, weight, values in reversed(list(zip(names, weights, inputs, strict=True))):
            found[f"{name}.bias"] = error.sum(1)
            found[f"{name}.weight"] = error.transpose(1, 2) @ values
            if values is not inputs[0]:
                slope = 1 - values**2 if tanh else values > 0
                error = (error @ weight).mul_(slope)
        return loss, [found[name] for name in state]

    return gradients


def updater(
    parameters: list[Tensor], optimizer: str, lr: float, momentum: float, weight_decay: float
) -> Callable[[list[Tensor]], None]:
    """One step of torch's SGD or Adam, from gradients, in place.

    Its functional form: the optimizer object's bookkeeping costs as much as the update at these
    sizes, and imports torch's compiler.
    """
    parameters = [parameter.detach() for parameter in parameters]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    if optimizer == "adam":
        num_steps = [torch.zeros((), device=p.device) for p in parameters]

        def update(gradients: list[Tensor]) -> None:
            adam(
                parameters, gradients, means, squares, [], num_steps, fused=True, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=lr, weight_decay=weight_decay, eps=1e-8, maximize=False,
            )  # fmt: skip
    else:
        buffers = means if momentum else [None] * len(parameters)

        def update(gradients: list[Tensor]) -> None:
            sgd(
                parameters, gradients, buffers, fused=True, weight_decay=weight_decay,
                momentum=momentum, lr=lr, dampening=0.0, nesterov=False, maximize=False,
            )  # fmt: skip

    return update
