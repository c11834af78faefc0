"""How much of a decision tree its users have learned, by what their queries let them build."""

import numpy as np


def entropy(labels: np.ndarray) -> float:
    """The entropy of (N,) labels, in bits; 0 of none."""
    shares = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
    return float(-(shares * np.log2(shares)).sum())


def information_gain(leaves: np.ndarray, labels: np.ndarray) -> float:
    """How many bits a tree's leaves tell of labels: their entropy, less that within the leaves.

    Args:
        leaves: (N,) the leaf in which each record of a validation set ends.
        labels: (N,) what the protected tree says of each.

    Source:
        Kesarwani et al., Model extraction warning in MLaaS paradigm, ACSAC 2018. The status of a
        user is the gain of a tree trained on their queries and answers, over that of the
        protected one.
    """
    within = (float(np.mean(leaves == n)) * entropy(labels[leaves == n]) for n in np.unique(leaves))
    return entropy(labels) - sum(within)


def coverage(visited: np.ndarray, weights: np.ndarray) -> float:
    """The share of the protected tree, by training records, whose leaves some query ended in.

    Args:
        visited: the leaf of each query, of one user or of several that may collude.
        weights: (nodes,) training records in each leaf.
    """
    return float(weights[np.unique(visited.astype(int))].sum() / weights.sum())
