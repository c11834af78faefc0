"""Exercises of defenses/dp_gan: reference solutions, and checks."""

import torch

from vplib.exercises import judge


def solve_clipped_pairs(real, fake, clip):
    """The sum of pair gradients, each clipped as a whole."""
    pairs = real + fake
    norms = pairs.norm(dim=1, keepdim=True)
    return (pairs * (clip / norms).clamp_max(1)).sum(0)


def check_clipped_pairs(attempt) -> str | None:
    """Checks the sum on pairs of which one is long, one short and one cancels in part."""
    real = torch.tensor([[3.0, 0.0], [0.2, 0.1], [2.0, 2.0]])
    fake = torch.tensor([[0.0, 4.0], [0.1, 0.3], [-2.0, -1.5]])
    nothing, pairs = torch.zeros_like(real), real + fake
    halves = [solve_clipped_pairs(half, nothing, 1.0) for half in (real, fake)]
    right, total = solve_clipped_pairs(real, fake, 1.0), pairs.sum(0)
    mistakes = {
        "that is the mean; the noise is for the sum, whose sensitivity is the clip norm": right / 3,
        "you clipped the batch gradient: one record can still turn all of it": total / total.norm(),
        "you clipped the two halves: that is DP-CGAN, and a pair may then be twice as long": (
            halves[0] + halves[1]
        ),
        "nothing is clipped yet, so no finite noise hides a record": total,
        "clipping shortens what is too long; it does not stretch the short ones": (
            (pairs / pairs.norm(dim=1, keepdim=True)).sum(0)
        ),
    }
    why = "one record is in one pair, and a pair adds at most the clip norm"
    hint = "add the halves of each pair, shorten each sum to the clip norm, then add up the pairs"
    return judge(attempt(real.clone(), fake.clone(), 1.0), right, why, mistakes, hint)


def solve_reference_score(images, samples, references):
    """How much nearer an image is to these samples than to samples of generators without it."""
    return torch.cdist(images, references).amin(2).mean(0) - torch.cdist(images, samples).amin(1)


def check_reference_score(attempt) -> str | None:
    """Checks the score on a copied image, one that any generator makes, and a stranger."""
    images, samples = torch.tensor([[1.0, 2], [5, 5], [9, 0]]), torch.tensor([[1, 2], [5, 5.5]])
    references = torch.tensor([[[5.0, 5.0], [2.0, 0.0]], [[4.5, 5.0], [7.0, 7.0]]])
    right = solve_reference_score(images, samples, references)
    near, pooled = (torch.cdist(images, x).amin(1) for x in (samples, references.flatten(0, 1)))
    mistakes = {
        "likelier members get the higher score: turn the sign": -right,
        "the references are missing: some images are near to any generator's": -near,
        "average over the references: of all together, some sample is always near": pooled - near,
    }
    why = "nearer to these samples than to those of generators that never saw it"
    hint = "distance to the nearest sample of each reference, averaged, minus that to `samples`"
    return judge(attempt(images, samples, references), right, why, mistakes, hint)


def solve_sanitize(gradients, clip, sigma):
    """Each generated image's gradient clipped, and the standard deviation of its noise."""
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (clip / norms).clamp_max(1), 2 * clip * sigma


def check_sanitize(attempt) -> str | None:
    """Checks what GS-WGAN clips and how much noise two far-apart gradients need."""
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
    clipped, deviation = solve_sanitize(gradients, 1.0, 1.5)
    whole = gradients / gradients.norm()

    def rows_are(wanted):
        return lambda answer: torch.allclose(torch.as_tensor(answer[0]).float(), wanted, atol=1e-4)

    opposite = "one clip norm is not enough: the other discriminator may pull the opposite way"
    difference = "the noise is sigma times the most that two clipped gradients can differ by"
    mistakes = {
        "you clipped the whole batch at once; each image's gradient is released": rows_are(whole),
        opposite: (clipped, 1.5),
        difference: rows_are(clipped),
    }
    why = "two discriminators can pull in opposite directions, twice the clip norm apart"
    hint = "shorten each row to the clip norm where it is longer, and leave the others"
    return judge(attempt(gradients.clone(), 1.0, 1.5), (clipped, deviation), why, mistakes, hint)


def solve_mean_embedding(features, labels, num_classes):
    """The sum of features of each class."""
    return torch.stack([features[labels == c].sum(0) for c in range(num_classes)])


def check_mean_embedding(attempt) -> str | None:
    """Checks DP-MERF's one release on classes of different size, one of them empty."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]])
    labels = torch.tensor([0, 0, 2, 0])
    right = solve_mean_embedding(features, labels, 3)
    by_size = right / torch.tensor([[3.0], [1.0], [1.0]])
    mistakes = {
        "a class without images gives 0 / 0: release sums, and never divide by class sizes": (
            lambda found: found.isnan().any()
        ),
        "divide by the number of images after the noise, or the noise must shrink too": right / 4,
        "a mean over the class divides by its size, which is private: release the sum": by_size,
    }
    why = "one image more or less moves one row by a vector of length one"
    hint = "add up the features of the images of each class: a row a class, a column a feature"
    return judge(attempt(features.clone(), labels.clone(), 3), right, why, mistakes, hint)
