"""Private GANs by noise on the discriminator's gradients: DPGAN, DP-CGAN, and Bie's many steps.

An experiment repeats a training R times (levels of noise, draws): the R discriminators and
generators are stacked as in `vplib.batched` and step together, each on Poisson batches of its own.
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
from torch import Tensor
from torch.func import stack_module_state

from vplib import experiment, seeding, threads
from vplib.nets import models

State = dict[str, Tensor]
Factors = list[tuple[Tensor, Tensor]]
LOSSES = ("logistic", "wasserstein")
PAIRINGS = ("pairs", "halves")


class Generators(NamedTuple):
    """R trained generators: all that the methods here release.

    Args:
        state: parameters by name, each stacked to (R, ...).
        shape: (C, H, W) of an image.
        num_classes: of the one-hot vector beside the latent one.
        num_latents: size of a latent vector.
    """

    state: State
    shape: tuple[int, ...]
    num_classes: int
    num_latents: int

    def images(self, latents: Tensor, labels: Tensor) -> Tensor:
        """(R, B, pixels) in [0, 1] from (R, B, num_latents) latents and (R, B) labels."""
        hot = one_hot(labels, self.num_classes)
        return respond(self.state, torch.cat([latents, hot], -1)).sigmoid()

    def draw(self, labels: Tensor) -> Tensor:
        """As `images`, from latents drawn with torch's generator."""
        latents = torch.randn(*labels.shape, self.num_latents).to(labels.device)
        return self.images(latents, labels)

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int = 0) -> Tensor:
        """Images that each generator makes of these classes.

        Args:
            labels: (N,) the classes asked for.
            seed: of the latents.

        Returns:
            (R, N, C, H, W) images in [0, 1].
        """
        runs = len(next(iter(self.state.values())))
        with seeding.seeded(seed):
            return self.draw(labels.expand(runs, -1)).unflatten(-1, self.shape)


class Trained(NamedTuple):
    """A training's result.

    Args:
        generators: R generators.
        critics: R discriminators, stacked; private where their gradients were noised.
        trace: (T, R) mean score of real minus generated images, at T moments. It is computed from
            the images without noise, for the reader of this notebook: it is not private.
    """

    generators: Generators
    critics: State
    trace: Tensor


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
    num_latents: int = 16,
    batch_size: int = 64,
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
        clip: largest norm of what one image adds to a gradient; `math.inf` for no clipping.
        pairing: "pairs" clips the gradient of a real image and a generated one of its class
            together (Xie); "halves" clips and noises the real half alone, and generated images
            have classes of their own (Torkzadehmahani).
        loss: "wasserstein" (RMSProp) or "logistic", non-saturating (Adam).
        weight_clip: discriminator's weights stay within plus or minus this; None: anywhere.
        lr: learning rate of the discriminator.
        generator_lr: learning rate of the generator.
        hidden: widths of the discriminator's hidden layers; the generator has one of 64.
        num_latents: size of a latent vector.
        batch_size: generated images a step of the generator.
        subsets: (R, n) rows that each run trains on; None: all images.
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
    _check(images, labels, num_classes, sigmas, num_steps)
    for name, given, known in (("pairing", pairing, PAIRINGS), ("loss", loss, LOSSES)):
        if given not in known:
            raise ValueError(f"unknown {name} {given!r}; {experiment.nearest(given, known)}")
    if not 0 < sample_rate <= 1 or not clip > 0 or critic_steps < 1:
        raise ValueError(
            f"sample_rate {sample_rate} must lie in (0, 1], clip {clip} above 0 and critic_steps "
            f"{critic_steps} at 1 or more"
        )
    sigma = torch.as_tensor(sigmas, device=images.device)
    runs, scale = len(sigma), torch.where(sigma > 0, sigma * clip, 0.0)
    private = with_class(images.flatten(1), labels, num_classes)
    subsets = own_rows(subsets, len(images), runs, images.device)
    expected, logistic = sample_rate * subsets.shape[1], loss == "logistic"
    with seeding.seeded(seed), threads.one_thread(images):
        generators, stepper = new_generators(
            images, num_classes, runs, num_latents, generator_lr, logistic
        )
        critics = stack(private.shape[1], 1, hidden, runs, images.device)
        weights, trace = list(critics.values()), []
        update = optimizer(weights, lr, logistic)
        steps = range(num_steps)
        for step in experiment.progress(steps, description) if description else steps:
            rows, taken = poisson_batches(subsets.shape[1], sample_rate, runs, images.device)
            rows = subsets.gather(1, rows)
            fakes = labels[rows] if pairing == "pairs" else None
            if fakes is None:  # as many as expected, whatever the batch: no trace of the records
                fakes = random_labels(num_classes, runs, max(1, round(expected)), images.device)
            with torch.no_grad():
                fake = with_class(generators.draw(fakes), fakes, num_classes)
                real, high = factors(critics, private[rows], push(loss, True))
                made, low = factors(critics, fake, push(loss, False))
                if pairing == "pairs":
                    sums = release_all(clipped_sum([real, made], clip, taken), scale)
                else:
                    drawn = clipped_sum([made], clip, torch.ones_like(fakes, dtype=fake.dtype))
                    noised = release_all(clipped_sum([real], clip, taken), scale)
                    sums = [a + b for a, b in zip(noised, drawn, strict=True)]
            for weight, total in zip(weights, sums, strict=True):
                weight.grad = total / expected
            update.step()
            for weight in weights if weight_clip else ():
                weight.data.clamp_(-weight_clip, weight_clip)
            if step % max(1, num_steps // 50) == 0:
                mean = (high[..., 0] * taken).sum(1) / taken.sum(1).clamp_min(1)
                trace.append((mean - low[..., 0].mean(1)).cpu())
            if (step + 1) % critic_steps == 0:
                step_generator(generators, stepper, critics, batch_size, loss)
        check_finite(generators.state, generator_lr)
    return Trained(
        frozen(generators), {k: v.detach() for k, v in critics.items()}, torch.stack(trace)
    )


def clipped_sum(parts: Sequence[Factors], clip: float, taken: Tensor) -> list[Tensor]:
    """The sum over a batch of gradients, each clipped to a norm; no single gradient is formed.

    An example's gradient of a weight is an outer product d a', that of a bias is d, so that inner
    products of gradients are products of inner products.

    Args:
        parts: what adds up to an example's gradient, as `factors` gives it: one part, or a real
            and a generated image.
        clip: largest norm, over all parameters.
        taken: (R, B) 1 for the examples that count, 0 for padding.

    Returns:
        For each layer the sums for weight (R, out, in) and bias (R, out).

    Source:
        Goodfellow, Efficient per-example gradient computations, 2015, for one part.
    """
    squares = torch.zeros_like(taken)
    for i, one in enumerate(parts):
        for j, other in enumerate(parts[: i + 1]):
            for (d, a), (e, b) in zip(one, other, strict=True):
                squares += (1 + (i > j)) * (d * e).sum(-1) * ((a * b).sum(-1) + 1)
    scale = (taken * (clip / squares.clamp_min(1e-20).sqrt()).clamp_max(1)).unsqueeze(-1)
    sums = []
    for layer in zip(*parts, strict=True):
        scaled = [((d * scale), a) for d, a in layer]
        sums.append(sum(d.transpose(1, 2) @ a for d, a in scaled))
        sums.append(sum(d.sum(1) for d, _ in scaled))
    return sums


def factors(state: State, x: Tensor, slope: Callable[[Tensor], Tensor]) -> tuple[Factors, Tensor]:
    """Each example's gradient as a pair of vectors a layer, and the networks' answers.

    Args:
        state: R MLPs, stacked.
        x: (R, B, inputs).
        slope: from the answers (R, B, outputs) to the derivatives of each example's loss.

    Returns:
        For each layer d (R, B, out) and a (R, B, in); and the answers.
    """
    inputs, weights = [], layers(state)
    for i, (weight, bias) in enumerate(weights):
        x = x.relu() if i else x
        inputs.append(x)
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    error, found = slope(x), []
    for i in range(len(weights) - 1, -1, -1):
        found.append((error, inputs[i]))
        if i:
            error = (error @ weights[i][0]) * (inputs[i] > 0)
    return found[::-1], x


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


def own_rows(subsets: Tensor | None, num_images: int, runs: int, device) -> Tensor:
    """(R, n) rows of each run: these, or all of them."""
    rows = torch.arange(num_images).expand(runs, -1) if subsets is None else subsets
    if rows.ndim != 2 or len(rows) != runs or rows.dtype != torch.int64:
        raise ValueError(f"subsets must be int64 rows, one line for each of {runs} runs")
    return rows.to(device)


def layers(state: State) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of stacked MLPs, in order."""
    names = sorted({int(name.split(".")[0]) for name in state})
    return [(state[f"{i}.weight"], state[f"{i}.bias"]) for i in names]


def respond(state: State, x: Tensor) -> Tensor:
    """The answers of R stacked ReLU MLPs to (R, B, inputs)."""
    for i, (weight, bias) in enumerate(layers(state)):
        x = x.relu() if i else x
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    return x


def stack(inputs: int, outputs: int, hidden: Sequence[int], runs: int, device) -> State:
    """The stacked parameters of fresh MLPs, as leaves."""
    nets = [models.mlp((inputs,), outputs, hidden).to(device) for _ in range(runs)]
    return {
        name: value.detach().clone().requires_grad_()
        for name, value in stack_module_state(nets)[0].items()
    }


def new_generators(images, num_classes, runs, num_latents, lr, adam=True, hidden=(64,)):
    """R fresh generators of such images, and what steps them."""
    pixels, device = math.prod(images.shape[1:]), images.device
    state = stack(num_latents + num_classes, pixels, hidden, runs, device)
    generators = Generators(state, tuple(images.shape[1:]), num_classes, num_latents)
    return generators, optimizer(list(state.values()), lr, adam)


def optimizer(weights: list[Tensor], lr: float, adam: bool) -> torch.optim.Optimizer:
    """Adam without momentum (with it these GANs collapse), or RMSProp as in Wasserstein GANs."""
    if adam:
        return torch.optim.Adam(weights, lr=lr, betas=(0.0, 0.999), fused=True)
    return torch.optim.RMSprop(weights, lr=lr, foreach=True)


def step_generator(generators, stepper, critics: State, batch_size: int, loss: str) -> None:
    """One step of all generators against their discriminators, on classes drawn uniformly."""
    weight = next(iter(critics.values()))
    labels = random_labels(generators.num_classes, len(weight), batch_size, weight.device)
    fake = with_class(generators.draw(labels), labels, generators.num_classes)
    score = respond({k: v.detach() for k, v in critics.items()}, fake)
    value = F.softplus(-score) if loss == "logistic" else -score
    stepper.zero_grad()
    (value.sum() / batch_size).backward()
    stepper.step()


def release_all(sums: list[Tensor], scale: Tensor) -> list[Tensor]:
    """`release` for the gradients of all parameters: one vector, one noise."""
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


def frozen(generators: Generators) -> Generators:
    """The same generators, no longer trained."""
    return generators._replace(state={k: v.detach() for k, v in generators.state.items()})


def check_finite(state: State, lr: float) -> None:
    """Raises FloatingPointError where training has diverged."""
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise FloatingPointError(f"training diverged; lower the learning rate from {lr}")


def _check(images, labels, num_classes, sigmas, num_steps) -> None:
    if images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"need (N, C, H, W) images with N labels, not {tuple(images.shape)} and {len(labels)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}")
    if not len(sigmas) or not all(s >= 0 for s in sigmas):
        raise ValueError(f"sigmas must be noise multipliers of 0 or more, not {list(sigmas)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, not {num_steps}")
