"""A small GAN: what an attacker trains who has public images and wants a prior."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib import cache, experiment, seeding
from vplib.nets import training

NUM_LATENTS = 32
LR = 0.002


def dcgan(shape: Sequence[int], channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A small DCGAN: the generator, from (N, NUM_LATENTS) to images in [0, 1], and its critic.

    Args:
        shape: (C, H, W) of one image; H and W divisible by 4.
        channels: of the layers next to the image; the inner ones have twice as many.

    Returns:
        Generator and discriminator; the latter gives one logit, (N, 1), high for real images.

    Raises:
        ValueError: the images cannot be halved twice.

    Source:
        Radford et al., Unsupervised representation learning with deep convolutional generative
        adversarial networks, ICLR 2016; two levels instead of four.
    """
    depth, height, width = shape
    if height % 4 or width % 4:
        raise ValueError(f"{height}x{width} images cannot be halved twice; use another image_size")
    inner = (2 * channels, height // 4, width // 4)
    generator = nn.Sequential(
        nn.Linear(NUM_LATENTS, math.prod(inner)),
        nn.Unflatten(1, inner),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, depth, 4, 2, 1),
        nn.Sigmoid(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(depth, channels, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(math.prod(inner), 1),
    )
    return generator, discriminator


def fit_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    *,
    num_steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Trains a generator in place against a discriminator; trained ones come from the disk cache.

    Args:
        generator: from (N, NUM_LATENTS) normal vectors to images, as `dcgan` makes it.
        discriminator: from images to one logit each.
        images: (N, C, H, W) what to imitate.
        num_steps: steps of each of the two.
        batch_size: real and generated images a step.
        seed: decides the order of the images and the latent vectors.

    Returns:
        The generator, in evaluation mode.

    Raises:
        FloatingPointError: a loss is no longer finite.

    Source:
        Goodfellow et al., Generative adversarial nets, NeurIPS 2014, the non-saturating loss.
        Adam's beta_1 is 0: with DCGAN's 0.5 every other seed collapsed within 800 steps.
    """

    def trained() -> dict[str, Tensor]:
        nets = [net.to(images.device).train() for net in (generator, discriminator)]
        steppers = [
            torch.optim.Adam(net.parameters(), lr=LR, betas=(0.0, 0.999), fused=True)
            for net in nets
        ]
        with seeding.seeded(seeding.derive(seed, "gan")):
            for _ in experiment.progress(range(num_steps), "generator"):
                real = images[torch.randint(len(images), (batch_size,)).to(images.device)]
                fake = generator(torch.randn(batch_size, NUM_LATENTS).to(images.device))
                said = discriminator(torch.cat([real, fake.detach()])).flatten().chunk(2)
                loss = F.softplus(-said[0]).mean() + F.softplus(said[1]).mean()
                _step(steppers[1], loss)
                loss = F.softplus(-discriminator(fake)).mean()
                _step(steppers[0], loss, list(generator.parameters()))
            training.check_finite(loss.detach(), LR)
        return generator.state_dict()

    code = Path(__file__).read_text(encoding="utf-8")
    parts = code, images.device.type, num_steps, batch_size, seed, images, generator, discriminator
    generator.load_state_dict(cache.kept(parts, trained, generator.state_dict()))
    return generator.to(images.device).eval()


def _step(stepper: torch.optim.Optimizer, loss: Tensor, inputs: list | None = None) -> None:
    stepper.zero_grad()
    loss.backward(inputs=inputs)
    stepper.step()
