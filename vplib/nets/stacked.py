"""Many small networks of one architecture as one: their weights stacked, one product for all.

A state is a dictionary from a parameter's name to the K networks' values, (K, ...); inputs are
(K, B, ...). `RULES` says for each type of layer how K passes, their gradients and each example's
gradients become one. It serves training, DP-SGD, private GANs, and the simulated clients of the
federated loop; networks with other layers go through vmap.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

State = dict[str, Tensor]
Forward = Callable[[State, Tensor], Tensor]
Gradients = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]
Examples = dict[str, Tensor | tuple[Tensor, Tensor]]
_LOOP_ONLY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Rule(NamedTuple):
    """How K layers of one type are computed as one.

    Args:
        forward: outputs (K, B, ...) from the layer, inputs, weights (K, ...) and biases or None.
        back: slopes at the inputs from slopes at the outputs, inputs, outputs and weights; it may
            overwrite its first argument. None: by autograd.
        examples: each example's gradients of weight and bias, as in `examples`, from the layer,
            slopes at the outputs and inputs. None: the layer has no weights.
    """

    forward: Callable
    back: Callable | None = None
    examples: Callable | None = None


def _linear(layer, x, weight, bias):
    turned = weight.transpose(1, 2)
    return x @ turned if bias is None else torch.baddbmm(bias.unsqueeze(1), x, turned)


def _grouped(layer, x, weight, bias):
    """One grouped convolution on (B, K * C, H, W), which is a view of what another one made."""
    bias = None if bias is None else bias.flatten()
    shape = layer.stride, layer.padding, layer.dilation, len(x) * layer.groups
    y = F.conv2d(x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), bias, *shape)
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)


def _pooled(layer, x, *_):
    return layer(x.transpose(0, 1).flatten(1, 2)).unflatten(1, (len(x), -1)).transpose(0, 1)


def _patches(layer, x):
    """What each place of the output sees: (K, B, C * kernel, places)."""
    shape = layer.kernel_size, layer.dilation, layer.padding, layer.stride
    return F.unfold(x.flatten(0, 1), *shape).unflatten(0, x.shape[:2])


def _unfolded(layer, x, weight, bias):
    """A convolution as a product: fewer calls where its gradient is differentiated again."""
    size, pad = layer.dilation[0] * (layer.kernel_size[0] - 1) + 1, layer.padding[0]
    height = (x.shape[-2] + 2 * pad - size) // layer.stride[0] + 1
    y = weight.flatten(2)[:, None] @ _patches(layer, x)
    y = y if bias is None else y + bias[:, None, :, None]
    return y.unflatten(-1, (height, -1))


def _convolved_examples(layer, slope, x):
    slope, patches = slope.flatten(3).mT, _patches(layer, x).mT  # each place is an outer product
    shape, products = layer.weight.shape[1:], len(slope[0, 0]) * (slope.shape[3] + patches.shape[3])
    if products < layer.weight.numel():
        return (slope, patches.unflatten(3, shape)), slope.sum(2)
    return (slope.mT @ patches).unflatten(3, shape), slope.sum(2)


RULES = {
    nn.Linear: Rule(_linear, lambda d, x, y, w: d @ w, lambda layer, d, x: ((d, x), d)),
    nn.Conv2d: Rule(_grouped, None, _convolved_examples),
    nn.Flatten: Rule(lambda layer, x, *_: x.flatten(2), lambda d, x, y, w: d.view_as(x)),
    nn.MaxPool2d: Rule(_pooled),
    nn.AvgPool2d: Rule(_pooled),
    nn.ReLU: Rule(lambda layer, x, *_: x.relu(), lambda d, x, y, w: d.mul_(y > 0)),
    nn.Tanh: Rule(lambda layer, x, *_: x.tanh(), lambda d, x, y, w: d.mul_(1 - y**2)),
    nn.Sigmoid: Rule(lambda layer, x, *_: x.sigmoid(), lambda d, x, y, w: d.mul_(y * (1 - y))),
}


def known(net: nn.Module, unfold: bool = False) -> bool:
    """Whether `RULES` compute this network; a subclass may compute something else.

    Args:
        net: the network.
        unfold: its convolutions are to be unfolded, or their examples' gradients found.
    """
    if type(net) is not nn.Sequential or not all(type(layer) in RULES for layer in net):
        return False
    names = {f"{i}.{name}" for i, layer in enumerate(net) for name, _ in layer.named_parameters()}
    if names != {name for name, _ in net.named_parameters()}:  # other names, or a layer used twice
        return False
    flat = False
    for layer in net:
        if isinstance(layer, nn.Flatten):
            flat = True
            if (layer.start_dim, layer.end_dim) != (1, -1):
                return False
        if isinstance(layer, nn.Linear) and not flat:  # inputs of any shape
            return False
        if isinstance(layer, nn.Conv2d) and (
            layer.padding_mode != "zeros"
            or (unfold and (layer.groups > 1 or isinstance(layer.padding, str)))
        ):
            return False
    return True


def wins(model: nn.Module, images: Tensor) -> bool:
    """Whether stacked weights beat one model after another (measured, tests/benchmarks)."""
    if images.device.type != "cpu":
        return True
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    plain = isinstance(model, nn.Sequential)
    return plain and (not convolutions or images.shape[-1] <= 16)


def forward(net: nn.Sequential, state: State, x: Tensor, unfold: bool = False) -> Tensor:
    """The answers of K known networks, each to inputs of its own.

    Args:
        net: one of them; only its architecture counts.
        state: their parameters.
        x: (K, B, ...).
        unfold: convolutions as products, for gradients that are differentiated again.

    Returns:
        (K, B, outputs).
    """
    for i, layer in enumerate(net):
        unfolds = unfold and isinstance(layer, nn.Conv2d)
        compute = _unfolded if unfolds else RULES[type(layer)].forward
        x = compute(layer, x, state.get(f"{i}.weight"), state.get(f"{i}.bias"))
    return x


def functional(net: nn.Module) -> Forward:
    """One network of any architecture as a function of its parameters; its buffers stay.

    Args:
        net: it is copied. In training mode batch norm takes its own batch's statistics.
    """
    base = copy.deepcopy(net).requires_grad_(False)
    if net.training:
        replace_all_batch_norm_modules_(base)  # no running statistics, which vmap cannot update
    buffers = dict(base.named_buffers())
    return lambda state, x: functional_call(base, {**state, **buffers}, (x,))


def forward_of(net: nn.Module) -> Forward | None:
    """The forward pass of K models like this one, or None where they must go one by one.

    Returns:
        A function from a stacked state and inputs (K, B, ...) to logits (K, B, classes).
    """
    if (
        any(isinstance(m, _LOOP_ONLY) for m in net.modules())
        or next(net.buffers(), None) is not None
        or not all(p.requires_grad for p in net.parameters())
    ):
        return None
    return partial(forward, net) if known(net) else vmap(functional(net))


def by_autograd(
    forward: Forward, state: State, x: Tensor, y: Tensor, create_graph: bool = False
) -> tuple[Tensor, State]:
    """Gradients of all models by autograd; the sum over models does not mix their gradients.

    Args:
        forward: as `forward_of` gives it.
        state: parameters that require gradients.
        x: inputs (K, B, ...).
        y: labels (K, B), or probabilities (K, B, classes).
        create_graph: the gradients will be differentiated again.

    Returns:
        The logits, (K, B, classes), and by name the gradients of the mean cross-entropy.
    """
    with torch.enable_grad():
        logits = forward(state, x)
        flat = logits.flatten(0, 1), y.flatten(0, 1)
        loss = F.cross_entropy(*flat, reduction="sum") / x.shape[1]
        found = torch.autograd.grad(loss, list(state.values()), create_graph=create_graph)
    return logits.detach(), dict(zip(state, found, strict=True))


def gradients_of(net: nn.Module, state: State) -> Gradients:
    """Gradients of all models' mean cross-entropy: by hand where `RULES` can, else by autograd.

    By hand is half the cost at these sizes, where the time goes into calls, not products.

    Args:
        net: one of the models; `forward_of` must have an answer to it.
        state: their parameters, which an update may change in place.

    Returns:
        A function from inputs (K, B, ...) and labels (K, B) or (K, B, classes) to the logits and
        the gradients in the order of the state.
    """
    if known(net) and all(RULES[type(layer)].back for layer in net):

        def by_hand(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
            found, logits = examples(net, state, x, lambda z: entropy_slope(z, y).div_(x.shape[1]))
            return logits, list(summed(found).values())

        return by_hand
    forward = forward_of(net)

    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, found = by_autograd(forward, state, x, y)
        return logits, list(found.values())

    return gradients


def entropy_slope(logits: Tensor, y: Tensor) -> Tensor:
    """The derivatives of each example's cross-entropy by its logits.

    Args:
        logits: (K, B, classes).
        y: labels (K, B), or probabilities (K, B, classes).
    """
    slope = logits.softmax(-1)
    if y.ndim == logits.ndim:
        return slope.sub_(y)
    index = y.unsqueeze(-1)
    return slope.scatter_add_(2, index, slope.new_full((1, 1, 1), -1.0).expand(index.shape))


def examples(
    net: nn.Sequential, state: State, x: Tensor, slope: Callable[[Tensor], Tensor]
) -> tuple[Examples, Tensor]:
    """Each example's gradient, in K known networks at once, and the networks' answers.

    The gradient of a linear layer's weight is an outer product, and is left as its two vectors;
    that of a convolution is a sum of one for each place, and is left so where that is cheaper.

    Args:
        net: one of the networks.
        state: their parameters.
        x: (K, B, ...).
        slope: from the answers (K, B, outputs) to the derivatives of each example's loss.

    Returns:
        By parameter, in the order of the state, gradients in full (K, B, ...), or for weights of
        linear layers slopes (K, B, out) and inputs (K, B, in), of convolutions (K, B, places, out)
        and (K, B, places, in, height, width); and the answers, (K, B, outputs).
    """
    rules = [RULES[type(layer)] for layer in net]
    by_hand = all(rule.back for rule in rules)
    weighted = [i for i, rule in enumerate(rules) if rule.examples]
    inputs, outputs, slopes = [], [], {}
    state, x = detached(state), x.detach()
    with torch.enable_grad():
        for i, (layer, rule) in enumerate(zip(net, rules, strict=True)):
            inputs.append(x)
            x = rule.forward(layer, x, state.get(f"{i}.weight"), state.get(f"{i}.bias"))
            if i == weighted[0] and not by_hand:
                x.requires_grad_()
            outputs.append(x)
    answers = x.detach()
    error = slope(answers)
    if by_hand:
        for i in range(len(net) - 1, weighted[0] - 1, -1):
            if rules[i].examples:
                slopes[i] = error
            if i > weighted[0]:
                error = rules[i].back(error, inputs[i], outputs[i], state.get(f"{i}.weight"))
    else:
        slopes = torch.autograd.grad(x, [outputs[i] for i in weighted], error)
        slopes = dict(zip(weighted, slopes, strict=True))
    found = {}
    for i, error in slopes.items():
        pair = rules[i].examples(net[i], error, inputs[i].detach())
        found[f"{i}.weight"], found[f"{i}.bias"] = pair
    return {name: found[name] for name in state}, answers


def detached(state: State) -> State:
    """The same parameters, for gradients by something else."""
    return {name: value.detach() for name, value in state.items()}


def summed(found: Examples, weights: Tensor | None = None) -> State:
    """Sums over the batch of examples' gradients, (K, ...) by parameter.

    Args:
        found: as `examples` gives them.
        weights: (K, B) of each example; None: 1.
    """

    def total(one):
        if isinstance(one, tuple):
            slopes, inputs = one
            if weights is not None:
                slopes = slopes * weights.view(*weights.shape, *[1] * (slopes.ndim - 2))
            rows = inputs.flatten(1, slopes.ndim - 2)  # a place is one more example
            return (slopes.flatten(1, -2).mT @ rows.flatten(2)).unflatten(2, rows.shape[2:])
        if weights is None:
            return one.sum(1)
        return (weights.unsqueeze(1) @ one.flatten(2)).view(len(one), *one.shape[2:])

    sums = {name: total(found[name]) for name in reversed(found)}  # 5 % faster in this order
    return {name: sums[name] for name in found}


def clipped_sum(
    parts: Sequence[Examples], clip: float | Tensor, weights: Tensor
) -> tuple[State, Tensor]:
    """The sum over a batch of gradients, each clipped to a norm over all parameters.

    No gradient of a linear layer is formed (ghost clipping): inner products of outer products are
    products of inner products. So are those of sums of them, place by place.

    Args:
        parts: what adds up to an example's gradient, as `examples` gives it: one part, or such as
            that of a real and that of a generated image.
        clip: largest norm: a number, or (K,).
        weights: (K, B) 1 for the examples that count, 0 for padding.

    Returns:
        The sums by parameter, (K, ...), and the norms before clipping, (K, B).

    Source:
        Goodfellow, Efficient per-example gradient computations, arXiv:1510.01799 (norms, for one
        part); Li et al., ICLR 2022 (ghost clipping).
    """

    @cache  # a layer's slopes are in the gradients of its weight and of its bias
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(2).sum(-1)

    def inner(a, b):
        if type(a) is not tuple:
            return dot(a, b)
        if a[0].ndim == 3:
            return dot(a[0], b[0]) * dot(a[1], b[1])
        return dot(*(one.flatten(3) @ other.flatten(3).mT for one, other in zip(a, b, strict=True)))

    squares = torch.zeros_like(weights)
    for one, other in itertools.combinations_with_replacement(parts, 2):
        twice = 1 if one is other else 2
        for a, b in ((one[name], other[name]) for name in one):
            squares += twice * inner(a, b)
    norms = squares.clamp_min(0).sqrt()
    clip = torch.as_tensor(clip, dtype=norms.dtype, device=norms.device).view(-1, 1)
    weights = weights * (clip / norms.clamp_min(1e-12)).clamp_max(1)
    sums = [summed(one, weights) for one in parts]
    return {name: sum(one[name] for one in sums) for name in sums[0]}, norms


def updater(
    parameters: Sequence[Tensor],
    optimizer: str,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    beta: float = 0.9,
) -> Callable[[Sequence[Tensor]], None]:
    """One step of torch's SGD, Adam or RMSProp, from gradients, in place.

    Its functional form: the optimizer object's bookkeeping costs as much as the update at these
    sizes, and imports torch's compiler.

    Args:
        parameters: contiguous ones.
        optimizer: "sgd", "adam" or "rmsprop".
        lr: learning rate.
        momentum: of SGD.
        weight_decay: L2 penalty.
        beta: Adam's decay of the mean gradient.
    """
    parameters = [parameter.detach() for parameter in parameters]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    num_steps = [torch.zeros((), device=p.device) for p in parameters]
    settings = dict(lr=lr, weight_decay=weight_decay, maximize=False)

    def update(gradients: Sequence[Tensor]) -> None:
        gradients = [g.contiguous() for g in gradients]  # fused updates ignore strides
        if optimizer == "adam":
            adam(
                parameters, gradients, means, squares, [], num_steps, fused=True, amsgrad=False,
                beta1=beta, beta2=0.999, eps=1e-8, **settings,
            )  # fmt: skip
        elif optimizer == "rmsprop":
            rmsprop(
                parameters, gradients, squares, [], [], num_steps, foreach=True, alpha=0.99,
                eps=1e-8, momentum=0.0, centered=False, **settings,
            )  # fmt: skip
        else:
            buffers = means if momentum else [None] * len(parameters)
            sgd(
                parameters, gradients, buffers, fused=True, momentum=momentum, dampening=0.0,
                nesterov=False, **settings,
            )  # fmt: skip

    return update
