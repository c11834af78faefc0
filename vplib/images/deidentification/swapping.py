"""An encoder that keeps what a photo needs but the person, and a decoder that puts another in.

Both are small networks between eigenface codes, so that training takes seconds: photos become
pixels for one term alone, in which a network that reads the utility looks at them.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib import cache, experiment, seeding
from vplib.datasets.imageset import ImageSet
from vplib.nets import models
from vplib.nets.eigenfaces import Eigenfaces, fit_eigenfaces
from vplib.nets.training import check_finite

HIDDEN, BATCH = 256, 64
SHARP = 8.0  # what unit embeddings and their cosines are multiplied with
_space = lru_cache(maxsize=1)(fit_eigenfaces)  # several are trained on the same photos


class Step(NamedTuple):
    """What a loss sees of one batch of public photos.

    Args:
        rebuilt: (n, K) eigenface codes decoded with each photo's own identity, as pixels weigh.
        photos: (n, K) those of the photos themselves.
        mean: (n, dim) of the representations' normal distributions.
        log_variance: (n, dim) of them.
        guesses: (n, people) log probabilities that the adversary gives to who it is.
        read: (n, classes) logits of the frozen utility network on the photos with somebody else's
            identity; (n, 1) zeros where there is none.
        truth: (n,) what it should read.
    """

    rebuilt: Tensor
    photos: Tensor
    mean: Tensor
    log_variance: Tensor
    guesses: Tensor
    read: Tensor
    truth: Tensor


class Swapper(NamedTuple):
    """A trained de-identifier.

    Args:
        faces: the shared latent space.
        eyes: (N, C, H, W) photos to features of the utility network, or None.
        looks: (people, K) mean codes of the public people who may be swapped in.
        encoder: from features to mean and log variance of a representation.
        decoder: from a representation and a look to a change of that look's code.
        conditioned: False where the decoder is told no identity.
        secret: the owner's seed of what is drawn at release; who knows it can try photos.
    """

    faces: Eigenfaces
    eyes: Callable | None
    looks: Tensor
    encoder: nn.Module
    decoder: nn.Module
    conditioned: bool
    secret: int = 0

    @torch.no_grad()
    def represent(self, images: Tensor) -> Tensor:
        """(N, dim) representations of (N, C, H, W) photos, drawn: the same of the same photos.

        What is released is what the adversary saw in training, which is the draw, not its mean.
        """
        mean, log_variance = self.encoder(_features(self.faces, self.eyes, images)).chunk(2, 1)
        key = seeding.derive(self.secret, cache.fingerprint(images))
        draws = torch.randn(mean.shape, generator=torch.Generator().manual_seed(key))
        return mean + draws.to(mean) * _spread(log_variance)

    def draw(self, codes: Tensor, who: Tensor) -> Tensor:
        """(N, K) eigenface codes of the people `who`, (N,) rows of `looks`, as `codes` say."""
        look = self.looks[who] * self.conditioned
        return look + self.decoder(torch.cat([codes, look], 1))

    @torch.no_grad()
    def swap(self, images: Tensor, who: Tensor) -> Tensor:
        """(N, C, H, W) photos on which somebody else, `who`, does what is done on the images."""
        return self.faces.decode(self.draw(self.represent(images), who))


def train_swapper(
    public: ImageSet,
    loss: Callable[[Step], Tensor],
    *,
    utility: tuple[Callable, Tensor] | None = None,
    conditioned: bool = True,
    size: int = 16,
    dim: int = 128,
    passes: int = 24_000,
    lr: float = 0.002,
    seed: int = 0,
    secret: int = 0,
) -> Swapper:
    """A de-identifier, trained on public photos against an adversary who reads identities.

    The adversary takes a step before each of the networks': it learns who it is from the
    representation, with cross-entropy.

    Args:
        public: photos of people who may be swapped in, several of each.
        loss: what the two networks minimize, a function of a `Step`.
        utility: frozen eyes, from photos to unit embeddings, differentiable, and (N,) whole
            numbers: what they tell apart on the public photos.
        conditioned: False tells the decoder no identity, so that the representation has to.
        size: numbers of a representation.
        dim: of the eigenface codes; fewer where there are fewer photos.
        passes: photos seen in training.
        lr: learning rate of Adam.
        seed: decides initialization and order.
        secret: the owner's seed of what is drawn at release, unlike `seed` not to be published.

    Raises:
        ValueError: there are fewer than two people.
        FloatingPointError: training diverged.

    Source:
        After Chen, Konrad and Ishwar, VGAN-based image representation learning for
        privacy-preserving facial expression recognition, CVPR workshops 2018. Theirs is
        convolutional, and its discriminator looks at photos: real or not, who, which expression.
        Here an adversary looks at representations, and the utility network is frozen.
    """
    people = len(public.classes)
    if people < 2:
        raise ValueError(f"swapping needs two public people or more, not {people}")
    images, labels = public.images, public.labels
    faces = _space(images, min(dim, len(images) // 2))
    codes = faces.encode(images)
    counts = torch.bincount(labels, minlength=people).clamp(min=1)[:, None]
    looks = codes.new_zeros(people, codes.shape[1]).index_add_(0, labels, codes) / counts
    eyes, truth = utility or (None, torch.zeros_like(labels))
    features = _features(faces, eyes, images)
    wide = features.shape[1], codes.shape[1], people, size

    def build():
        enter, out, number, size = wide
        parts = dict(encoder=models.mlp((enter,), 2 * size, (HIDDEN,)))
        parts["adversary"] = models.mlp((size,), number, (128,))
        parts["decoder"] = models.mlp((size + out,), out, (HIDDEN, HIDDEN))
        return nn.ModuleDict(parts).to(images.device)

    model = seeding.initialized(build, seeding.derive(seed, "swapper"))
    swapper = Swapper(faces, eyes, looks, model["encoder"], model["decoder"], conditioned, secret)
    settings = passes, lr, seed
    key = _fit, loss, settings, conditioned, wide, images, labels, truth, eyes
    data = images, codes, features, labels, truth
    fit = partial(_fit, model, swapper, loss, data, *settings)
    model.load_state_dict(cache.kept(key, fit, model.state_dict()))
    model.requires_grad_(False)
    return swapper


@torch.no_grad()
def _features(faces, eyes, images):
    seen = faces.encode(images)
    return seen if eyes is None else torch.cat([SHARP * _embedded(eyes, images), seen], 1)


@lru_cache(maxsize=4)
def _embedded(eyes, images):
    """What the utility network sees; the same photos are asked about again and again."""
    return eyes(images)


def _fit(model, swapper, loss, data, passes, lr, seed):
    """Adversarial training in place; returns the state of all networks."""
    images, codes, features, labels, truth = data
    faces, eyes, look = swapper.faces, swapper.eyes, swapper.faces.scale
    weigh = look / look.square().sum().sqrt()  # a code's error as the pixels' error
    encoder, adversary = model["encoder"], model["adversary"]
    reader = None if eyes is None else _fit_reader(_embedded(eyes, images), truth)
    both = [*encoder.parameters(), *model["decoder"].parameters()]
    steppers = [torch.optim.Adam(p, lr, fused=True) for p in (both, [*adversary.parameters()])]
    with seeding.seeded(seeding.derive(seed, "training")):
        orders = [torch.randperm(len(images)) for _ in range(math.ceil(passes / len(images)))]
        batches = torch.cat(orders)[:passes].to(images.device).split(BATCH)
        for rows in experiment.progress(batches, "de-identifier"):
            mean, log_variance = encoder(features[rows]).chunk(2, 1)
            drawn = mean + torch.randn_like(mean) * _spread(log_variance)
            _move(steppers[1], F.cross_entropy(adversary(drawn.detach()), labels[rows]))
            rebuilt = swapper.draw(drawn, labels[rows])
            read = drawn.new_zeros(len(rows), 1)
            if eyes is not None:
                others = torch.randint(len(swapper.looks), (len(rows),)).to(rows.device)
                flat = (swapper.draw(drawn, others) * look) @ faces.basis
                made = (flat.view(-1, *faces.mean.shape) + faces.mean).clamp(-0.2, 1.2)
                read = SHARP * reader(eyes.args[0](made))
            step = Step(rebuilt * weigh, codes[rows] * weigh, mean, log_variance,
                        adversary(drawn).log_softmax(1), read, truth[rows])  # fmt: skip
            value = loss(step)
            _move(steppers[0], value)
        check_finite(value, lr)
    return {name: t.detach() for name, t in model.state_dict().items()}


def _spread(log_variance):
    return (log_variance.clamp(-6, 2) / 2).exp()


@lru_cache(maxsize=1)
def _fit_reader(embeddings, truth):
    """The utility network's last layer; it is the same in all trainings."""
    shape = embeddings.shape[1], int(truth.max()) + 1
    reader = seeding.initialized(partial(nn.Linear, *shape), 0).to(embeddings.device)
    stepper = torch.optim.Adam(reader.parameters(), 0.01, fused=True)
    for _ in range(300):
        _move(stepper, F.cross_entropy(SHARP * reader(embeddings), truth))
    return reader.requires_grad_(False)


def _move(stepper, value):
    stepper.zero_grad()
    value.backward()
    stepper.step()
