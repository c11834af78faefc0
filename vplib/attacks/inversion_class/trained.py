"""Inversion by networks that the attacker trains on a victim's answers: black box throughout.

`predict` is the victim, from images (N, C, H, W) in [0, 1] to probabilities (N, classes).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import stack_module_state

from vplib import experiment, seeding, threads
from vplib.attacks.inversion_class.search import Predict
from vplib.datasets.imageset import check_range
from vplib.nets import models, stacked, training

NUM_HIDDEN, LR, BATCH = 128, 0.003, 64  # of the inversion networks
GAMIN_HIDDEN, NUM_LATENTS, GAMIN_LR, PER_CLASS, NUM_NOISE = 64, 16, 0.002, 4, 64  # images a step
SCALE = 4  # its images and noise are made at a fourth of the size and enlarged: smooth ones
FLOOR = 1e-3  # probabilities below it are one thing: a rounded or truncated answer has none


def train_inverters(
    answers: Tensor, images: Tensor, *, num_epochs: int = 10, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """M networks from a victim's answer back to the image, trained at once.

    Args:
        answers: (M, N, classes) what a victim says about the auxiliary images, masked as the
            answers that will be inverted are: one network an M, victims and masks alike.
        images: (N, C, H, W) the attacker's own auxiliary images.
        num_epochs: passes over the images.
        seed: of initialization and order.

    Returns:
        A function from (M, B, classes) answers to (M, B, C, H, W) images.

    Raises:
        ValueError: answers and images do not belong together, images are not in [0, 1], or answers
            are no probabilities.
        FloatingPointError: the loss is no longer finite.

    Source:
        Yang et al., Neural network inversion in adversarial setting via background knowledge
        alignment, CCS 2019. There the network is convolutional; here it has one hidden layer, so
        that dozens train at once.
    """
    check_range(images)
    fits = answers.ndim == 3 and answers.shape[1] == len(images)
    if not fits or not ((answers >= 0) & (answers <= 1)).all() or num_epochs < 1:
        wanted = f"(networks, {len(images)}, classes) probabilities, and num_epochs 1 or more"
        raise ValueError(f"answers must be {wanted}, not {tuple(answers.shape)}, {num_epochs}")
    flat = images.flatten(1)
    with seeding.seeded(seed):
        nets = [models.mlp(answers.shape[-1:], len(flat[0]), (NUM_HIDDEN,)) for _ in answers]
    state = stack_module_state([net.to(images.device) for net in nets])[0]
    forward, weights = stacked.forward_of(nets[0]), list(state.values())
    update = stacked.updater(weights, "adam", LR)
    order = torch.Generator().manual_seed(seed)
    with threads.one_thread(images):
        for _ in experiment.progress(range(num_epochs), "inversion networks"):
            for rows in torch.randperm(len(images), generator=order).split(BATCH):
                rows = rows.to(images.device)
                made = forward(state, _features(answers[:, rows])).sigmoid()
                loss = (made - flat[rows]).square().mean((1, 2)).sum()
                update(torch.autograd.grad(loss, weights))
            training.check_finite(loss, LR)

    @torch.no_grad()
    def invert(said: Tensor) -> Tensor:
        return forward(state, _features(said)).sigmoid().unflatten(-1, images.shape[1:])

    return invert


def _features(answers: Tensor) -> Tensor:
    return answers.clamp_min(FLOOR).log() / 2 + 1


def train_gamin(
    predict: Predict,
    targets: Tensor,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    num_steps: int,
    seed: int = 0,
) -> Callable[[int], Tensor]:
    """Generators of a victim's classes, learned from its answers alone, without any image.

    A surrogate learns to answer like the victim on noise and on what the generators make; each
    generator learns to make what the surrogate takes for its class.

    Args:
        predict: the victim, black box; asked len(targets) * `PER_CLASS` + `NUM_NOISE` a step.
        targets: (N,) the class of each generator.
        shape: (C, H, W) of an image.
        num_classes: of the victim.
        num_steps: of surrogate and generators, in turns.
        seed: of everything random.

    Returns:
        A function from M to (M, N, C, H, W), M images of each class.

    Raises:
        ValueError: num_steps is not positive, a target is no class of the victim, or the images
            cannot be made at a fourth of their size.

    Source:
        Aivodji, Gambs and Ther, GAMIN: an adversarial approach to black-box model inversion, 2019.
        There the weight of the surrogate's two parts is adapted, networks are deeper and a
        surrogate serves one class; here all images weigh the same, those of the generators and
        those of noise, and one surrogate, a softmax regression, serves all classes.
    """
    classes = targets.dtype == torch.int64 and set(targets.tolist()) <= set(range(num_classes))
    if num_steps < 1 or not classes or shape[1] % SCALE or shape[2] % SCALE:
        wanted = f"int64 targets in 0..{num_classes - 1}, steps 1 or more, sizes {SCALE} divides"
        raise ValueError(f"give {wanted}, not {targets}, {num_steps}, {shape}")
    device, generator = targets.device, torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    small = torch.Size((shape[0], shape[1] // SCALE, shape[2] // SCALE))
    with seeding.seeded(seed):
        surrogate = models.mlp(shape, num_classes, ()).to(device)
        nets = [models.mlp((NUM_LATENTS,), small.numel(), (GAMIN_HIDDEN,)) for _ in targets]
    state = stack_module_state([net.to(device) for net in nets])[0]
    forward = stacked.forward_of(nets[0])
    student, makers = list(surrogate.parameters()), list(state.values())
    learn, improve = (stacked.updater(w, "adam", GAMIN_LR) for w in (student, makers))
    wanted = targets.repeat_interleave(PER_CLASS)

    def enlarged(images: Tensor) -> Tensor:
        return F.interpolate(images.view(-1, *small), shape[1:], mode="bilinear")

    with threads.one_thread(torch.empty(1, *shape, device=device)):
        for _ in experiment.progress(range(num_steps), "surrogate and generators"):
            made = enlarged(forward(state, noise(len(targets), PER_CLASS, NUM_LATENTS)).sigmoid())
            random = enlarged((0.5 + 0.25 * noise(NUM_NOISE, *small)).clamp(0, 1))
            asked = torch.cat([made.detach(), random])
            loss = F.cross_entropy(surrogate(asked), predict(asked))
            learn(torch.autograd.grad(loss, student))
            loss = F.cross_entropy(surrogate(made), wanted, reduction="sum") / PER_CLASS
            improve(torch.autograd.grad(loss, makers))

    @torch.no_grad()
    def generate(num_images: int) -> Tensor:
        made = enlarged(forward(state, noise(len(targets), num_images, NUM_LATENTS)).sigmoid())
        return made.unflatten(0, (len(targets), num_images)).transpose(0, 1)

    return generate
