"""Exercises of defenses/dp_gan: reference solutions, and checks."""

import torch


def solve_clipped_pairs(real, fake, clip):
    """The sum of pair gradients, each clipped as a whole."""
    pairs = real + fake
    norms = pairs.norm(dim=1, keepdim=True)
    return (pairs * (clip / norms).clamp_max(1)).sum(0)


def check_clipped_pairs(attempt) -> str | None:
    """Checks the sum on pairs of which one is long, one short and one cancels in part."""
    real = torch.tensor([[3.0, 0.0], [0.2, 0.1], [2.0, 2.0]])
    fake = torch.tensor([[0.0, 4.0], [0.1, 0.3], [-2.0, -1.5]])
    total = attempt(real.clone(), fake.clone(), 1.0)
    if total is None:
        return None
    total = torch.as_tensor(total).float()
    if total.shape != (2,):
        return f"return one gradient of 2 numbers for the batch, not {tuple(total.shape)}"

    def clipped(x):
        return x * (1 / x.norm(dim=-1, keepdim=True)).clamp_max(1)

    def near(other):
        return torch.allclose(total, other, atol=1e-5)

    right = solve_clipped_pairs(real, fake, 1.0)
    if near(right):
        return "right: one record is in one pair, and a pair adds at most the clip norm"
    if near(right / 3):
        return "that is the mean; the noise is for the sum, whose sensitivity is the clip norm"
    if near(clipped((real + fake).sum(0))):
        return "you clipped the batch gradient: one record can still turn all of it"
    if near(clipped(real).sum(0) + clipped(fake).sum(0)):
        return "you clipped the two halves: that is DP-CGAN, and a pair may then be twice as long"
    if near((real + fake).sum(0)):
        return "nothing is clipped yet, so no finite noise hides a record"
    pairs = real + fake
    if near((pairs / pairs.norm(dim=1, keepdim=True)).sum(0)):
        return "clipping shortens what is too long; it does not stretch the short ones"
    return "add the halves of each pair, shorten each sum to the clip norm, then add up the pairs"


def solve_sanitize(gradients, clip, sigma):
    """Each generated image's gradient clipped, and the standard deviation of its noise."""
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (clip / norms).clamp_max(1), 2 * clip * sigma


def check_sanitize(attempt) -> str | None:
    """Checks what GS-WGAN clips and how much noise two far-apart gradients need."""
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
    answer = attempt(gradients.clone(), 1.0, 1.5)
    if answer is None:
        return None
    if not isinstance(answer, tuple) or len(answer) != 2:
        return "return two things: the clipped gradients, and the noise's standard deviation"
    clipped, deviation = torch.as_tensor(answer[0]).float(), float(answer[1])
    right, noise = solve_sanitize(gradients, 1.0, 1.5)
    if clipped.shape != right.shape:
        return f"each image keeps a gradient of its own: {tuple(right.shape)}"
    if torch.allclose(clipped, gradients / gradients.norm(), atol=1e-5):
        return "you clipped the whole batch at once; each image's gradient is released"
    if not torch.allclose(clipped, right, atol=1e-5):
        return "shorten each row to the clip norm where it is longer, and leave the others"
    if abs(deviation - noise) < 1e-6:
        return (
            "right: two discriminators can pull in opposite directions, twice the clip norm apart"
        )
    if abs(deviation - 1.5) < 1e-6:
        return "one clip norm is not enough: the other discriminator may pull the opposite way"
    return "the noise is sigma times the most that two clipped gradients can differ by"


def solve_mean_embedding(features, labels, num_classes):
    """The sum of features of each class."""
    return torch.stack([features[labels == c].sum(0) for c in range(num_classes)])


def check_mean_embedding(attempt) -> str | None:
    """Checks DP-MERF's one release on classes of different size, one of them empty."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]])
    labels = torch.tensor([0, 0, 2, 0])
    found = attempt(features.clone(), labels.clone(), 3)
    if found is None:
        return None
    found = torch.as_tensor(found).float()
    right = solve_mean_embedding(features, labels, 3)
    if found.shape != right.shape:
        return f"one row a class, one column a feature: {tuple(right.shape)}"
    if torch.isnan(found).any():
        return "a class without images gives 0 / 0: release sums, and never divide by class sizes"
    if torch.allclose(found, right, atol=1e-5):
        return "right: one image more or less moves one row by a vector of length one"
    if torch.allclose(found, right / 4, atol=1e-5):
        return "divide by the number of images after the noise, or the noise must shrink too"
    sizes = torch.tensor([3.0, 1.0, 1.0])[:, None]
    if torch.allclose(found, right / sizes, atol=1e-5):
        return "a mean over the class divides by its size, which is private: release the sum"
    return "add up the features of the images of each class"
