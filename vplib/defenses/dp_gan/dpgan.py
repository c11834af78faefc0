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

    def labelled(self, num: int) -> Tensor:
        """(R, num, pixels + classes) images of classes drawn uniformly, with their class."""
        weight = next(iter(self.nets[1].values()))
        labels = random_labels(self.num_classes, len(weight), num, weight.device)
        return with_class(self.draw(labels), labels, self.num_classes)

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
    weight_clip: float = math.inf,
    lr: float = 0.01,
    generator_lr: float = 0.02,
    hidden: Sequence[int] = (32,),
    generator_hidden: Sequence[int] = (64,),
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> tuple[Generators, Networks]:
    """Generators trained against discriminators whose gradients are clipped, summed and noised.

    Args:
        images: (N, C, H, W) float32 private images in [0, 1].
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
        weight_clip: discriminator's weights stay within plus or minus this; `math.inf`: anywhere.
        lr: learning rate of the discriminator.
        generator_lr: learning rate of the generator.
        hidden: widths of the discriminator's hidden layers.
        generator_hidden: of the generator's.
        subsets: (R, n) rows that each run trains on, none twice in a run; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Returns:
        R generators, and R discriminators, which are as private: their gradients were noised.

    Raises:
        ValueError: a setting is unknown or out of range.
        FloatingPointError: weights are no longer finite.

    Source:
        Xie et al., Differentially private generative adversarial network, 2018, algorithm 1 (which
        bounds gradients through the weights; clipping each pair needs no such bound);
        Torkzadehmahani et al., DP-CGAN, CVPR workshops 2019; Bie et al., Private GANs, revisited,
        TMLR 2023, for `critic_steps`. Batches are Poisson, as the accountants assume.
    """
    counts = dict(num_steps=num_steps, critic_steps=critic_steps)
    sigma, subsets = prepared(images, labels, num_classes, sigmas, subsets, **counts)
    for name, given, known in (("pairing", pairing, PAIRINGS), ("loss", loss, LOSSES)):
        require(given in known, f"unknown {name} {given!r}; {experiment.nearest(given, known)}")
    require(0 < sample_rate <= 1, f"sample_rate must lie in (0, 1], not {sample_rate}")
    require(weight_clip > 0, f"weight_clip must be above 0, not {weight_clip}; math.inf for no box")
    runs, scale, pairs = len(sigma), noise_scale(sigma, clip), pairing == "pairs"
    private = with_class(images.flatten(1), labels, num_classes)
    expected = sample_rate * subsets.shape[1]
    with seeding.seeded(seed), threads.one_thread(images):
        generators, improve = fresh(images, num_classes, runs, generator_hidden, generator_lr, loss)
        critics = net, state = new(private.shape[1], 1, hidden, runs, images.device)
        update = updater(state, lr, loss)
        for step in experiment.progress(range(num_steps), description):
            rows, taken = poisson_batches(subsets.shape[1], sample_rate, runs, images.device)
            rows, num = subsets.gather(1, rows), max(1, round(expected))
            # Halves: as many as expected, whatever the batch, so that no trace of it is in them.
            fakes = labels[rows] if pairs else random_labels(num_classes, runs, num, images.device)
            with torch.no_grad():
                fake = with_class(generators.draw(fakes), fakes, num_classes)
            real, _ = stacked.examples(net, state, private[rows], push(loss, True))
            made, _ = stacked.examples(net, state, fake, push(loss, False))
            total, _ = stacked.clipped_sum([real, made] if pairs else [real], clip, taken)
            sums = release_all(total, scale)
            if not pairs:
                total, _ = stacked.clipped_sum([made], clip, torch.ones_like(fake[..., 0]))
                sums = [a + b for a, b in zip(sums, total.values(), strict=True)]
            update([value / expected for value in sums])
            for weight in state.values() if weight_clip < math.inf else ():
                weight.data.clamp_(-weight_clip, weight_clip)
            if (step + 1) % critic_steps == 0:
                step_generators(generators, improve, critics, GENERATED, loss)
    return finished(generators, generator_lr), (net, stacked.detached(state))


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


def fresh(images, num_classes: int, runs: int, hidden, lr: float, loss: str = "logistic"):
    """R new generators of such images, with hidden layers so wide, and what steps them."""
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
    score = stacked.forward(net, stacked.detached(state), generators.labelled(batch_size))
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


def require(fine: bool, message: str) -> None:
    """Refuses what is not fine.

    Raises:
        ValueError: with this message.
    """
    if not fine:
        raise ValueError(message)


def noise_scale(sigma: Tensor, clip: float) -> Tensor:
    """(R,) standard deviations for noise multipliers; 0 where there is no noise.

    Args:
        sigma: (R,) noise multipliers.
        clip: largest norm of what is noised.

    Raises:
        ValueError: the clip norm is not positive, or noise is asked for and it bounds nothing.
    """
    require(clip > 0, f"clip must be a norm above 0, not {clip}; math.inf for no clipping")
    hides = "clip inf bounds nothing, so no finite noise hides an image: give a finite clip, or "
    require(clip < math.inf or not (sigma > 0).any(), hides + "sigmas of 0")
    return torch.where(sigma > 0, sigma * clip, 0.0)


def prepared(
    images: Tensor, labels: Tensor, num_classes: int, sigmas, subsets: Tensor | None, **counts: int
) -> tuple[Tensor, Tensor]:
    """What all trainings here take, checked: (R,) scales of noise, and (R, n) rows of each run.

    Args:
        images: (N, C, H, W), float32 as the networks are.
        labels: (N,).
        num_classes: number of classes.
        sigmas: R scales.
        subsets: (R, n) rows; None: all images for each run.
        counts: of steps, teachers and the like, by name.

    Raises:
        ValueError: one of them cannot be.
    """
    found = f"{images.dtype} {tuple(images.shape)} and {len(labels)}"
    fine = images.ndim == 4 and len(images) == len(labels) and images.dtype == torch.float32
    require(fine, f"need float32 (N, C, H, W) images in [0, 1] with N labels, not {found}")
    fine = labels.dtype == torch.int64 and 0 <= labels.min() and labels.max() < num_classes
    require(fine, f"labels must be int64 and lie in 0..{num_classes - 1}")
    fine = len(sigmas) and all(0 <= s < math.inf for s in sigmas)
    require(fine, f"sigmas must be finite scales of 0 or more, not {list(sigmas)}")
    for name, count in counts.items():
        require(count >= 1, f"{name} must be 1 or more, not {count}")
    runs, num = len(sigmas), len(images)
    rows = torch.arange(num).expand(runs, -1) if subsets is None else subsets
    fine = rows.ndim == 2 and len(rows) == runs and rows.dtype == torch.int64 and rows.numel()
    require(fine, f"subsets must be int64 rows, one line for each of {runs} runs")
    fine = rows.min() >= 0 and rows.max() < num
    require(fine, f"subsets must hold rows 0 to {num - 1} of the {num} images")
    twice = "a line of subsets holds a row twice: that image would weigh twice what the noise hides"
    fine = (rows.sort(1).values.diff(dim=1) > 0).all()
    require(fine, f"{twice}, and epsilon would be understated; give each row once")
    return torch.as_tensor(sigmas, dtype=torch.float32).to(images.device), rows.to(images.device)
