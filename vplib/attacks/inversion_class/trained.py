"""Inversion by networks that the attacker trains on a victim's answers: black box throughout.

`predict` is the victim, from images (N, C, H, W) in [0, 1] to probabilities (N, classes).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib import experiment, threads
from vplib.attacks.inversion_class.search import Predict
from vplib.nets import models, stacked

FLOOR = 1e-3  # probabilities below it are one thing: a rounded or truncated answer has none


def train_inverters(
    answers: Tensor,
    images: Tensor,
    *,
    num_hidden: int = 128,
    num_epochs: int = 10,
    lr: float = 0.003,
    batch_size: int = 64,
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """M networks from a victim's answer back to the image, trained at once.

    Args:
        answers: (M, N, classes) what a victim says about the auxiliary images, masked as the
            answers that will be inverted are: one network an M, victims and masks alike.
        images: (N, C, H, W) the attacker's own auxiliary images.
        num_hidden: width of the hidden layer.
        num_epochs: passes over the images.
        lr: learning rate of Adam.
        batch_size: images a step.
        seed: of initialization and order.

    Returns:
        A function from (M, B, classes) answers to (M, B, C, H, W) images.

    Raises:
        ValueError: answers and images do not belong together.
        FloatingPointError: the loss is no longer finite.

    Source:
        Yang et al., Neural network inversion in adversarial setting via background knowledge
        alignment, CCS 2019. There the network is convolutional; here it
        has one hidden layer, so that dozens train at once.
    """
    if answers.ndim != 3 or answers.shape[1] != len(images):
        raise ValueError(
            f"answers must be (networks, {len(images)}, classes), not {tuple(answers.shape)}"
        )

    def build() -> nn.Module:
        return models.mlp(answers.shape[-1:], images[0].numel(), (num_hidden,))

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        nets = [build() for _ in answers]
    state = {n: torch.stack([net.state_dict()[n] for net in nets]) for n in nets[0].state_dict()}
    state = {n: value.to(images.device).requires_grad_() for n, value in state.items()}
    forward, flat = stacked.forward_of(nets[0]), images.flatten(1)
    update = stacked.updater(list(state.values()), "adam", lr, 0.0, 0.0)
    order = torch.Generator().manual_seed(seed)
    features = _features(answers)
    with threads.one_thread(images):
        for _ in experiment.progress(range(num_epochs), "inversion networks"):
            for rows in torch.randperm(len(images), generator=order).split(batch_size):
                rows = rows.to(images.device)
                made = forward(state, features[:, rows]).sigmoid()
                loss = (made - flat[rows]).square().mean((1, 2)).sum()
                update(_slopes(loss, list(state.values())))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"training diverged; lower lr from {lr}")

    @torch.no_grad()
    def invert(said: Tensor) -> Tensor:
        found = forward(state, _features(said)).sigmoid()
        return found.unflatten(-1, images.shape[1:])

    return invert


def _slopes(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return [g.contiguous() for g in torch.autograd.grad(loss, parameters)]  # for fused updates


def _features(answers: Tensor) -> Tensor:
    return answers.clamp_min(FLOOR).log() / 2 + 1


def train_gamin(
    predict: Predict,
    targets: Tensor,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    num_steps: int = 300,
    num_latents: int = 16,
    num_hidden: int = 64,
    per_class: int = 4,
    num_noise: int = 64,
    scale: int = 4,
    surrogate_hidden: tuple[int, ...] = (),
    lr: float = 0.002,
    seed: int = 0,
) -> Callable[[int], Tensor]:
    """Generators of a victim's classes, learned from its answers alone, without any image.

    A surrogate learns to answer like the victim on noise and on what the generators make; each
    generator learns to make what the surrogate takes for its class.

    Args:
        predict: the victim, black box; asked len(targets) * per_class + num_noise a step.
        targets: (N,) the class of each generator.
        shape: (C, H, W) of an image.
        num_classes: of the victim.
        num_steps: of surrogate and generators, in turns.
        num_latents: size of a generator's input.
        num_hidden: width of the hidden layers.
        per_class: images of each generator a step.
        num_noise: noise images a step.
        scale: images and noise are made at 1/scale of the size and enlarged: smooth ones.
        surrogate_hidden: widths of the surrogate's hidden layers.
        lr: learning rate of Adam.
        seed: of everything random.

    Returns:
        A function from M to (M, N, C, H, W), M images of each class.

    Raises:
        ValueError: a setting is not positive.

    Source:
        Aivodji, Gambs and Ther, GAMIN: an adversarial approach to black-box model inversion, 2019.
        There the weight of the surrogate's two parts is adapted, networks are deeper and a
        surrogate serves one class; here both parts weigh the same and one serves all classes.
    """
    if min(num_steps, num_latents, num_hidden, per_class, num_noise) < 1:
        raise ValueError(
            "num_steps, num_latents, num_hidden, per_class and num_noise are 1 or more"
        )
    device, generator = targets.device, torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        surrogate = models.mlp(shape, num_classes, surrogate_hidden).to(device)
        small = shape[0], shape[1] // scale, shape[2] // scale
        num_pixels = torch.Size(small).numel()
        nets = [models.mlp((num_latents,), num_pixels, (num_hidden,)) for _ in targets]
    state = {n: torch.stack([net.state_dict()[n] for net in nets]) for n in nets[0].state_dict()}
    state = {n: value.to(device).requires_grad_() for n, value in state.items()}
    forward, weights = stacked.forward_of(nets[0]), list(surrogate.parameters())
    learn = stacked.updater(weights, "adam", lr, 0.0, 0.0)
    improve = stacked.updater(list(state.values()), "adam", lr, 0.0, 0.0)
    wanted = targets.repeat_interleave(per_class)

    def enlarged(images: Tensor) -> Tensor:
        return F.interpolate(images.view(-1, *small), shape[1:], mode="bilinear")

    with threads.one_thread(torch.empty(1, *shape, device=device)):
        for _ in experiment.progress(range(num_steps), "surrogate and generators"):
            made = enlarged(forward(state, noise(len(targets), per_class, num_latents)).sigmoid())
            random = enlarged((0.5 + 0.25 * noise(num_noise, *small)).clamp(0, 1))
            asked = torch.cat([made.detach(), random])
            loss = F.cross_entropy(surrogate(asked), predict(asked))
            learn(_slopes(loss, weights))
            loss = F.cross_entropy(surrogate(made), wanted, reduction="sum") / per_class
            improve(_slopes(loss, list(state.values())))

    @torch.no_grad()
    def generate(num_images: int) -> Tensor:
        made = enlarged(forward(state, noise(len(targets), num_images, num_latents)).sigmoid())
        return made.unflatten(0, (len(targets), num_images)).transpose(0, 1)

    return generate
