"""Gradient inversion: images from what clients of federated learning send to their server.

The attacker holds what the server holds: the `model` that it sent, the `messages` that came back,
and the shape of an image. What is granted beyond that is an argument of its own: labels, the
number of local steps, their learning rate and batch size. No function here receives an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import vmap

from vplib import experiment, threads
from vplib.attacks.inversion_gradient import lbfgs
from vplib.datasets.imageset import is_whole
from vplib.nets import stacked
from vplib.show import metrics
from vplib.victims import federated

STARTS = ("gray", "uniform", "normal", "patterned", "dark")

State = dict[str, Tensor]
Objective = Callable[[State, State], Tensor]
Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inversion:
    """What an attacker reconstructed from K messages.

    Args:
        images: (K, B, C, H, W), not clipped to [0, 1].
        labels: (K, B, classes) probabilities, granted or found.
        values: (K,) the objective that was reached.
        path: (T, K, B, C, H, W) the images on the way.
        path_values: (T, K) the objective on the way.
        evaluations: (K,) how often the gradient of each objective was computed.
    """

    images: Tensor
    labels: Tensor
    values: Tensor
    path: Tensor
    path_values: Tensor
    evaluations: Tensor


def squared_distance(found: State, wanted: State) -> Tensor:
    """The squared distance of a guess's message from the client's, over the latter's squared norm.

    Args:
        found: by parameter name, what a client with the guessed images would send.
        wanted: by the same names, what the client has sent.

    Source:
        Zhu et al., Deep leakage from gradients, NeurIPS 2019, equation 3, which does not divide:
        the scale decides when an optimizer thinks that it is done.
    """
    distance = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return distance / sum(value.square().sum() for value in wanted.values())


def invert_gradient(
    messages: Sequence[federated.Message],
    model: nn.Module,
    shape: Sequence[int],
    *,
    objective: Objective = squared_distance,
    prior: Prior | None = None,
    num_images: int = 1,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    lr: float | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "lbfgs",
    line_search: bool = True,
    num_evaluations: int = 200,
    step_size: float = 0.1,
    start: str = "gray",
    keep_every: int | None = None,
    seed: int = 0,
    description: str = "",
) -> Inversion:
    """Images whose messages would be those that came: DLG, iDLG and Inverting Gradients.

    Args:
        messages: K of them, all of one kind, from clients that hold `num_images` images each.
        model: as the server sent it; computed in its dtype, float64 for the last decibels.
        shape: (C, H, W) of one image.
        objective: what is minimized, of one client: from the message that the guess would give and
            the one that came, both by parameter name, to a number that is never negative.
        prior: added to it, from one client's images (B, C, H, W) to a number; none by default.
        num_images: B, images of each client.
        labels: (K, B) granted or inferred class indices; None optimizes them too, as DLG.
        num_classes: needed without labels.
        lr: of local steps; needed for updates.
        num_steps: local steps; needed for updates.
        batch_size: images a local step, in the order of the images; all by default.
        optimizer: "lbfgs" or "signed adam".
        line_search: of L-BFGS.
        num_evaluations: gradients of the objective, for each message.
        step_size: of signed Adam.
        start: one of `STARTS`.
        keep_every: evaluations between two kept images on the way.
        seed: decides the starts.
        description: names the progress bar; empty for none.

    Returns:
        What was found for each message.

    Raises:
        ValueError: a message does not fit the model, is zero or not finite, a grant is missing, or
            a setting is out of range.

    Source:
        Zhu et al., Deep leakage from gradients, NeurIPS 2019, equation 3; Geiping et al.,
        Inverting gradients, NeurIPS 2020, equation 4. Here K messages are inverted together.
    """
    targets = stack_messages(model, messages)
    counts = dict(num_images=num_images, num_evaluations=num_evaluations, keep_every=keep_every)
    _check(messages, counts, optimizer, step_size, labels, num_classes, lr, num_steps)
    num, like = len(messages), next(iter(targets.values()))
    steps = dict(lr=lr, num_steps=num_steps, batch_size=batch_size)
    everyone = torch.arange(num, device=like.device)
    flat = (num_images, *shape)
    pixels = torch.Size(flat).numel()
    if labels is not None:
        classes = num_classes or _last_layer(messages[0]).shape[0]
        granted = _one_hot(labels, (num, num_images), classes).to(like)

    def parts(points, rows):
        x = points[:, :pixels].view(-1, *flat)
        if labels is not None:
            return x, granted[rows]
        return x, points[:, pixels:].view(len(points), num_images, -1).softmax(-1)

    def evaluate(points, rows):
        rows = slice(None) if torch.equal(rows, everyone) else rows  # nothing to copy
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            x, y = parts(points, rows)
            found = simulate(model, x, y, **steps)
            wanted = {name: value[rows] for name, value in targets.items()}
            terms = [vmap(objective)(found, wanted)] + ([vmap(prior)(x)] if prior else [])
            if any(term.shape != points.shape[:1] for term in terms):
                raise ValueError("objective and prior each give one number, for one client")
            total = sum(terms)
            (slopes,) = torch.autograd.grad(total.sum(), points)
        return total.detach(), slopes

    starts = draw_starts(num, flat, start, seed).flatten(1)
    if labels is None:
        noise = torch.Generator().manual_seed(seed)
        free = torch.randn(num, num_images * num_classes, generator=noise)
        starts = torch.cat([starts, free], 1)
    starts = starts.to(like)
    given = dict(keep_every=keep_every, description=description)
    with threads.one_thread(starts[:, :pixels]):
        if optimizer == "lbfgs":
            given |= dict(line_search=line_search)
            found = lbfgs.minimize(evaluate, starts, num_evaluations, **given)
        else:
            found = _signed_adam(evaluate, starts, num_evaluations, step_size, pixels, **given)
    images, told = parts(found.points, everyone)
    path = found.path[..., :pixels].view(-1, num, *flat)
    return Inversion(images, told, found.values, path, found.path_values, found.evaluations)


def _signed_adam(evaluate, starts, num_evaluations, lr, pixels, *, keep_every, description):
    """Adam on the sign of the gradient, pixels kept in [0, 1], the rate cut tenfold three times."""
    points = starts.clone()
    rows = torch.arange(len(points), device=points.device)
    stepper = torch.optim.Adam([points], lr=lr)
    cuts = [num_evaluations * i // 8 for i in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(stepper, cuts, 0.1)
    best, best_values, path, values = points.clone(), None, [points.clone()], []
    for i in experiment.progress(range(num_evaluations), description):
        value, slopes = evaluate(points, rows)
        values = values or [value]
        best_values = value.clone() if best_values is None else best_values
        better = value <= best_values
        best[better], best_values[better] = points[better], value[better]
        if i == num_evaluations - 1:
            break
        points.grad = slopes.sign()
        stepper.step()
        schedule.step()
        points[:, :pixels] = points[:, :pixels].clamp(0, 1)
        if keep_every and (i + 1) % keep_every == 0:
            path.append(best.clone())
            values.append(best_values.clone())
    path, values = torch.stack([*path, best.clone()]), torch.stack([*values, best_values.clone()])
    return lbfgs.Minimum(best, best_values, path, values, torch.full_like(rows, num_evaluations))


def simulate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """The messages that K clients with these images would send, differentiable in the images.

    For who attacks a message: clients send detached copies. Batch norm in training mode takes the
    statistics of each client's own batch, as the client did.

    Args:
        model: as the server sent it; its mode (train or eval) is that of the clients.
        images: (K, B, C, H, W).
        labels: (K, B, classes) probabilities.
        lr: learning rate of local steps.
        num_steps: local steps; None for a gradient instead of an update.
        batch_size: images a local step, in order; all by default.

    Returns:
        By parameter name (K, ...).

    Raises:
        ValueError: the model drops units at random, which nobody else can repeat.
    """
    dropout = nn.modules.dropout._DropoutNd
    if model.training and any(isinstance(m, dropout) for m in model.modules()):
        raise ValueError(
            "dropout in training mode: the attacker does not know which units the client dropped; "
            "call model.eval(), or take a model without dropout"
        )
    small = images.shape[-1] <= 32  # there unfolded convolutions take half the time of vmap
    if small and stacked.known(model, unfold=True):
        forward = partial(stacked.forward, model, unfold=True)
    else:
        forward = vmap(stacked.functional(model))
    start = {name: p.detach() for name, p in federated.trainable(model).items()}
    several = {n: p.detach().expand(len(images), *p.shape) for n, p in model.named_parameters()}
    here = {name: several.pop(name).requires_grad_() for name in start}  # the rest is frozen

    def slopes(state, x, y):
        return stacked.by_autograd(lambda s, x: forward(several | s, x), state, x, y, True)

    if num_steps is None:
        return slopes(here, images, labels)[1]
    num_images = images.shape[1]
    for rows in federated.local_batches(num_images, num_steps, batch_size or num_images):
        _, found = slopes(here, images[:, rows], labels[:, rows])
        here = {name: value - lr * found[name] for name, value in here.items()}
    return {name: here[name] - start[name] for name in start}


def infer_label(message: federated.Message, rule: str = "product") -> int:
    """The label of a client's only image, read from the gradient of the last layer.

    With cross-entropy the row of class c is (p_c - y_c) times the layer's input: it points against
    all others for the true label alone.

    Args:
        message: of one image; of a batch the answer means nothing. An update has the opposite sign.
        rule: "product" asks whose row points against all others; "sum" whose row has the smallest
            sum: the true one if the last layer's input sums to more than zero, as it does if it is
            never negative (ReLU, sigmoid; not tanh).

    Raises:
        ValueError: there is no such rule, no linear layer, or no third class for "product".

    Source:
        Zhao et al., iDLG, 2020, equations 4 to 6.
    """
    rows = _last_layer(message) * (-1 if isinstance(message, federated.Update) else 1)
    _known("rule", rule, ("product", "sum"))
    if rule == "sum":
        return int(rows.sum(1).argmin())
    if len(rows) < 3:
        raise ValueError("of two classes each row points against the other: use rule='sum'")
    return int((rows @ rows.sum(0) - rows.square().sum(1)).argmin())  # with all others together


def draw_starts(num: int, shape: Sequence[int], kind: str, seed: int) -> Tensor:
    """Images to start from, (num, *shape): gray, noise, a noisy tile repeated, or black.

    The tile is a quarter of the image high and wide, rounded up; what stands over is cut off.

    Raises:
        ValueError: there is no such start.

    Source: Wei et al., A framework for evaluating gradient leakage attacks, ESORICS 2020.
    """
    _known("start", kind, STARTS)
    generator = torch.Generator().manual_seed(seed)
    if kind == "patterned":
        *lead, height, width = shape
        tile = torch.rand((num, *lead, -(-height // 4), -(-width // 4)), generator=generator)
        return tile.repeat(*[1] * (len(lead) + 1), 4, 4)[..., :height, :width]
    if kind in ("gray", "dark"):
        return torch.full((num, *shape), 0.5 if kind == "gray" else 0.0)
    draw = torch.randn if kind == "normal" else torch.rand
    return draw((num, *shape), generator=generator)


def match_batches(found: Tensor, truth: Tensor) -> Tensor:
    """The found images in the order of the true ones, for the judge: a gradient has no order.

    Args:
        found: (K, B, C, H, W) in [0, 1].
        truth: the same shape.

    Returns:
        `found` with each batch permuted so that the summed squared error is least (Hungarian).
    """
    errors = (found[:, :, None] - truth[:, None]).flatten(3).square().mean(-1)
    orders = [linear_sum_assignment(e.cpu().numpy().T)[1] for e in errors]
    return torch.stack([batch[order] for batch, order in zip(found, orders, strict=True)])


def score_psnr(found: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each image after matching, (K, B) dB; at most 60: that of equal images is infinite.

    Args:
        found: (K, B, C, H, W); clipped to [0, 1], and gray where not finite.
        truth: the same shape, in [0, 1].

    Raises:
        ValueError: the shapes differ, or the true images lie outside [0, 1].
    """
    if found.shape != truth.shape or truth.ndim != 5:
        shapes = f"{tuple(found.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"found and true images must both be (K, B, C, H, W), not {shapes}")
    clipped = found.to(truth).nan_to_num(0.5).clamp(0, 1)
    matched = match_batches(clipped, truth)
    quality = metrics.psnr(matched.flatten(0, 1), truth.flatten(0, 1))
    return quality.clamp(max=60.0).view(truth.shape[:2])


def stack_messages(model: nn.Module, messages: Sequence[federated.Message]) -> dict[str, Tensor]:
    """The messages by parameter name, (K, ...), after a check that they can be inverted.

    Raises:
        ValueError: there is none; names or shapes are not the model's; one is zero or not finite.
    """
    if not messages:
        raise ValueError("there is no message to invert")
    expected = {name: tuple(p.shape) for name, p in federated.trainable(model).items()}
    like = next(model.parameters())
    for k, message in enumerate(messages):
        shapes = {name: tuple(value.shape) for name, value in message.values.items()}
        if shapes != expected:
            wrong = min(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
            have, need = shapes.get(wrong, "absent"), expected.get(wrong, "absent")
            raise ValueError(
                f"message {k} does not fit the model: {wrong} is {have}, not {need}; "
                "invert with the model that was sent to this client"
            )
        if not all(value.isfinite().all() for value in message.values.values()):
            raise ValueError(
                f"message {k} holds NaN or infinite numbers; the client's training diverged, "
                "and nothing can be matched: lower its learning rate"
            )
        if not any(value.any() for value in message.values.values()):
            raise ValueError(
                f"message {k} is zero everywhere: any image with a zero gradient fits it, so "
                "there is nothing to invert"
            )
    return {name: torch.stack([m.values[name] for m in messages]).to(like) for name in expected}


def _last_layer(message: federated.Message) -> Tensor:
    matrices = [value for value in message.values.values() if value.ndim == 2]
    if not matrices:
        raise ValueError("the model has no linear layer to read a label from")
    return matrices[-1]


def _one_hot(labels, shape: tuple[int, int], num_classes: int) -> Tensor:
    labels = torch.as_tensor(labels)
    whole = labels.shape == shape and not labels.is_floating_point()
    if not (whole and bool(((labels >= 0) & (labels < num_classes)).all())):
        raise ValueError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, a row a message, one an "
            f"image: {shape}; these are {labels.dtype}, {tuple(labels.shape)}"
        )
    return F.one_hot(labels.long(), num_classes)


def _known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; {experiment.nearest(value, known)}")


def _check(messages, counts, optimizer, step_size, labels, num_classes, lr, num_steps) -> None:
    if len({type(message) for message in messages}) > 1:
        raise ValueError("messages must be all gradients or all updates")
    if isinstance(messages[0], federated.Update):
        if lr is None or num_steps is None:
            raise ValueError(
                "an update is the sum of unknown steps: give lr and num_steps, or treat it as one "
                "gradient with federated.Gradients, divided by minus the learning rate"
            )
        counts = counts | dict(num_steps=num_steps)
    elif num_steps is not None:
        raise ValueError("num_steps is for updates; these messages are gradients")
    _known("optimizer", optimizer, ("lbfgs", "signed adam"))
    for name, value in counts.items():
        if not is_whole(value, 1) and (name, value) != ("keep_every", None):
            raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
    if step_size <= 0 or (lr is not None and lr <= 0):
        raise ValueError(f"step_size and lr must be above 0, not {step_size} and {lr}")
    if labels is None and num_classes is None:
        raise ValueError("without labels give num_classes, the number of logits")
