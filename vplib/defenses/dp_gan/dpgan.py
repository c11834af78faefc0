"""Private GANs by noise on the discriminator's gradients: DPGAN, DP-CGAN, and Bie's many steps.

An experiment repeats a training R times (levels of noise, draws): the R discriminators and
generators are stacked as in `nets.stacked` and step together, each on Poisson batches of its own.
All networks are ReLU MLPs that see the class as a one-hot vector beside their input, so that every
method can be asked for labelled images.

Whatever a method takes from the private images on its way to the generator passes `release`, and
nothing else may: a test replaces `release` by a constant and swaps a record.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from vplib import experiment, seeding, threads
from vplib.nets import models, stacked, training

Networks = tuple[nn.Sequential, stacked.State]  # one of R MLPs, and the parameters of all
LOSSES = ("logistic", "wasserstein")
PAIRINGS = ("pairs", "halves")
NUM_LATENTS = 16
GENERATED = 64  # images that a generator makes in one of its own steps


class Generators(NamedTuple):
    """R trained generators: all that the methods here release.

    Args:
        nets: R MLPs from a latent vector with a class beside it to the logits of pixels.
        shape: (C, H, W) of an image.
        num_classes: of the one-hot vector beside the latent one.
    """

    nets: Networks
    shape: tuple[int, ...]
    num_classes: int

    def draw(self, labels: Tensor) -> Tensor:
        """(R, B, pixels) in [0, 1] for (R, B) labels, from latents drawn with torch's generator."""
        latents = torch.randn(*labels.shape, NUM_LATENTS).to(labels.device)
        return stacked.forward(*self.nets, with_class(latents, labels, self.num_classes)).sigmoid()

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int = 0) -> Tensor:
        """Images that each generator makes of these classes.

        Args:
            labels: (N,) the classes asked for.
            seed: of the latents.

        Returns:
            (R, N, C, H, W) images in [0, 1].
        """
        runs = len(next(iter(self.nets[1].values())))
        with seeding.seeded(seed):
            return self.draw(labels.expand(runs, -1)).unflatten(-1, self.shape)


class Trained(NamedTuple):
    """A training's result.

    Args:
        generators: R generators.
        critics: R discriminators, as private as the generators: their gradients were noised.
    """

    generators: Generators
    critics: Networks


def release(values: Tensor, scale: Tensor, law: str = "normal") -> Tensor:
    """The one door between private images and a generator: values with noise added.

    Args:
        values: (R, ...) what was computed from private images.
        scale: (R,) standard deviation of normal noise, or scale of Laplace's.
        law: "normal" or "laplace".
    """
    noise = torch.randn(values.shape)
    if law == "laplace":
        noise = torch.distributions.Laplace(0.0, 1.0).sample(values.shape)
    return values + scale.view(-1, *[1] * (values.ndim - 1)) * noise.to(values)


def train_dpgan(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    sigmas: Sequence[float],
    *,
    sample_rate: float,
    num_steps: int,
    critic_steps: int = 10,
    clip: float = 1.0,
    pairing: str = "halves",
    loss: str = "logistic",
    weight_clip: float | None = None,
    lr: float = 0.01,
    generator_lr: float = 0.02,
    hidden: Sequence[int] = (32,),
    generator_hidden: Sequence[int] = (64,),
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> Trained:
    """Generators trained against discriminators whose gradients are clipped, summed and noised.

    Args:
        images: (N, C, H, W) private images in [0, 1].
        labels: (N,) their classes, private too; class frequencies are taken as uniform.
        num_classes: number of classes.
        sigmas: R noise multipliers, one a run; 0 trains without privacy.
        sample_rate: chance of each image to be in a step's batch.
        num_steps: steps of each discriminator; with sigma and rate it decides epsilon.
        critic_steps: discriminator steps for one step of the generator.
        clip: largest norm of what one image adds to a gradient; `math.inf`, for no clipping, goes
            with sigmas of 0 alone.
        pairing: "pairs" clips the gradient of a real image and a generated one of its class
            together (Xie); "halves" clips and noises the real half alone, and generated images
            have classes of their own (Torkzadehmahani).
        loss: "wasserstein" (RMSProp) or "logistic", non-saturating (Adam).
        weight_clip: discriminator's weights stay within plus or minus this; None: anywhere.
        lr: learning rate of the discriminator.
        generator_lr: learning rate of the generator.
        hidden: widths of the discriminator's hidden layers.
        generator_hidden: of the generator's.
        subsets: (R, n) rows that each run trains on, none twice in a run; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Raises:
        ValueError: a setting is unknown or out of range.
        FloatingPointError: weights are no longer finite.

    Source:
        Xie et al., Differentially private generative adversarial network, 2018, algorithm 1 (which
        bounds gradients through the weights; clipping each pair needs no such bound);
        Torkzadehmahani et al., DP-CGAN, CVPR workshops 2019; Bie et al., Private GANs, revisited,
        TMLR 2023, for `critic_steps`. Batches are Poisson, as the accountants assume.
    """
    sigma, subsets = prepared(
        images, labels, num_classes, sigmas, subsets, num_steps=num_steps, critic_steps=critic_steps
    )
    for name, given, known in (("pairing", pairing, PAIRINGS), ("loss", loss, LOSSES)):
        if given not in known:
            raise ValueError(f"unknown {name} {given!r}; {experiment.nearest(given, known)}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], not {sample_rate}")
    runs, scale = len(sigma), noise_scale(sigma, clip)
    private = with_class(images.flatten(1), labels, num_classes)
    expected = sample_rate * subsets.shape[1]
    with seeding.seeded(seed), threads.one_thread(images):
        generators, improve = new_generators(
            images, num_classes, runs, generator_hidden, generator_lr, loss
        )
        critics = net, state = new(private.shape[1], 1, hidden, runs, images.device)
        update = updater(state, lr, loss)
        for step in experiment.progress(range(num_steps), description):
            rows, taken = poisson_batches(subsets.shape[1], sample_rate, runs, images.device)
            rows = subsets.gather(1, rows)
            fakes = labels[rows] if pairing == "pairs" else None
            if fakes is None:  # as many as expected, whatever the batch: no trace of the records
                fakes = random_labels(num_classes, runs, max(1, round(expected)), images.device)
            with torch.no_grad():
                fake = with_class(generators.draw(fakes), fakes, num_classes)
            real, _ = stacked.examples(net, state, private[rows], push(loss, True))
            made, _ = stacked.examples(net, state, fake, push(loss, False))
            if pairing == "pairs":
                sums = release_all(stacked.clipped_sum([real, made], clip, taken)[0], scale)
            else:
                drawn, _ = stacked.clipped_sum([made], clip, torch.ones_like(fake[..., 0]))
                noised = release_all(stacked.clipped_sum([real], clip, taken)[0], scale)
                sums = [a + b for a, b in zip(noised, drawn.values(), strict=True)]
            update([total / expected for total in sums])
            for weight in state.values() if weight_clip else ():
                weight.data.clamp_(-weight_clip, weight_clip)
            if (step + 1) % critic_steps == 0:
                step_generators(generators, improve, critics, GENERATED, loss)
    return Trained(finished(generators, generator_lr), (net, stacked.detached(state)))


def push(loss: str, real: bool) -> Callable[[Tensor], Tensor]:
    """The derivative of a discriminator's loss by its score: what makes real high, generated low.

    Args:
        loss: one of `LOSSES`.
        real: for a real image, or for a generated one.
    """
    if loss == "logistic":
        return (lambda z: z.sigmoid() - 1) if real else torch.sigmoid
    return (lambda z: -torch.ones_like(z)) if real else torch.ones_like


def poisson_batches(num_records: int, rate: float, runs: int, device) -> tuple[Tensor, Tensor]:
    """A batch a run, in which each record is by a coin of its own.

    Returns:
        (R, B) rows and (R, B) 1 where a row counts; B is the largest of the R batches.
    """
    coins = torch.rand(runs, num_records, device=device)
    largest = max(1, int((coins < rate).sum(1).max()))
    coin, rows = coins.topk(largest, largest=False, sorted=False)
    return rows, (coin < rate).float()


def new(inputs: int, outputs: int, hidden: Sequence[int], runs: int, device) -> Networks:
    """Fresh ReLU MLPs."""
    nets = [models.mlp((inputs,), outputs, hidden).to(device) for _ in range(runs)]
    return nets[0], stack_module_state(nets)[0]


def new_generators(
    images: Tensor,
    num_classes: int,
    runs: int,
    hidden: Sequence[int],
    lr: float,
    loss: str = "logistic",
):
    """R fresh generators of such images, and what steps them."""
    nets = new(NUM_LATENTS + num_classes, images[0].numel(), hidden, runs, images.device)
    return Generators(nets, tuple(images.shape[1:]), num_classes), updater(nets[1], lr, loss)


def updater(state: stacked.State, lr: float, loss: str = "logistic") -> Callable:
    """Adam without momentum (with it these GANs collapse), or RMSProp as in Wasserstein GANs."""
    optimizer = "adam" if loss == "logistic" else "rmsprop"
    return stacked.updater(list(state.values()), optimizer, lr, beta=0.0)


def step_generators(
    generators: Generators, improve: Callable, critics: Networks, batch_size: int, loss: str
) -> None:
    """One step of all generators against their discriminators, on classes drawn uniformly."""
    (net, state), weights = critics, list(generators.nets[1].values())
    labels = random_labels(generators.num_classes, len(weights[0]), batch_size, weights[0].device)
    fake = with_class(generators.draw(labels), labels, generators.num_classes)
    score = stacked.forward(net, stacked.detached(state), fake)
    value = F.softplus(-score) if loss == "logistic" else -score
    improve(torch.autograd.grad(value.sum() / batch_size, weights))


def release_all(sums: stacked.State, scale: Tensor) -> list[Tensor]:
    """`release` for the gradients of all parameters: one vector, one noise."""
    sums = list(sums.values())
    flat = torch.cat([value.flatten(1) for value in sums], 1)
    parts = release(flat, scale).split([value[0].numel() for value in sums], 1)
    return [part.view_as(value) for part, value in zip(parts, sums, strict=True)]


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(..., classes) float."""
    return torch.eye(num_classes, device=labels.device)[labels]


def with_class(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Images (..., pixels) with their class as a one-hot vector beside them."""
    return torch.cat([x, one_hot(labels, num_classes)], -1)


def random_labels(num_classes: int, runs: int, num: int, device) -> Tensor:
    """(R, num) classes, uniform: true frequencies are private."""
    return torch.randint(num_classes, (runs, num)).to(device)


def finished(generators: Generators, lr: float) -> Generators:
    """The same generators, no longer trained.

    Raises:
        FloatingPointError: training has diverged.
    """
    net, state = generators.nets
    training.check_finite(sum(value.detach().sum() for value in state.values()), lr)
    return generators._replace(nets=(net, stacked.detached(state)))


def noise_scale(sigma: Tensor, clip: float) -> Tensor:
    """(R,) standard deviations for noise multipliers; 0 where there is no noise.

    Args:
        sigma: (R,) noise multipliers.
        clip: largest norm of what is noised.

    Raises:
        ValueError: the clip norm is not positive, or noise is asked for and it bounds nothing.
    """
    if not clip > 0:
        raise ValueError(f"clip must be a norm above 0, not {clip}; math.inf for no clipping")
    if math.isinf(clip) and (sigma > 0).any():
        raise ValueError(
            "clip inf bounds nothing, so no finite noise hides an image: give a finite clip, or "
            "sigmas of 0"
        )
    return torch.where(sigma > 0, sigma * clip, 0.0)


def prepared(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    sigmas: Sequence[float],
    subsets: Tensor | None,
    **counts: int,
) -> tuple[Tensor, Tensor]:
    """What all trainings here take, checked: (R,) scales of noise, and (R, n) rows of each run.

    Args:
        images: (N, C, H, W).
        labels: (N,).
        num_classes: number of classes.
        sigmas: R scales.
        subsets: (R, n) rows; None: all images for each run.
        counts: of steps, teachers and the like, by name.

    Raises:
        ValueError: one of them cannot be.
    """
    if images.ndim != 4 or len(images) != len(labels) or not images.is_floating_point():
        raise ValueError(
            "need float (N, C, H, W) images in [0, 1] with N labels, not "
            f"{images.dtype} {tuple(images.shape)} and {len(labels)}"
        )
    if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be int64 and lie in 0..{num_classes - 1}")
    if not len(sigmas) or not all(0 <= s < math.inf for s in sigmas):
        raise ValueError(f"sigmas must be finite scales of 0 or more, not {list(sigmas)}")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, not {count}")
    runs, num = len(sigmas), len(images)
    rows = torch.arange(num).expand(runs, -1) if subsets is None else subsets
    if rows.ndim != 2 or len(rows) != runs or rows.dtype != torch.int64 or not rows.numel():
        raise ValueError(f"subsets must be int64 rows, one line for each of {runs} runs")
    if int(rows.min()) < 0 or int(rows.max()) >= num:
        raise ValueError(f"subsets must hold rows 0 to {num - 1} of the {num} images")
    if (rows.sort(1).values.diff(dim=1) == 0).any():
        raise ValueError(
            "a line of subsets holds a row twice: that image would weigh twice what the noise "
            "hides, and epsilon would be understated; give each row once"
        )
    return torch.as_tensor(sigmas, dtype=torch.float32, device=images.device), rows.to(
        images.device
    )
