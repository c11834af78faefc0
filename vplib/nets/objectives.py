"""What many models descend on instead of their cross-entropy: arguments of `training.fit_many`.

An objective is made from one of the models, their stacked state, their numbers in the ensemble
and their seeds; it gives gradients as `stacked.gradients_of` does. Whatever it draws or trains
beside a model follows from that model's seed: K models at once equal one after another.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from vplib import seeding
from vplib.nets import stacked

Objective = Callable[[nn.Module, stacked.State, Tensor, list[int]], stacked.Gradients]
Gain = Callable[[Tensor, Tensor], Tensor]


def against(
    build_adversary: Callable[[], nn.Module],
    references: Tensor,
    reference_labels: Tensor,
    *,
    strength: float,
    gain: Gain,
    lr: float = 0.001,
) -> Objective:
    """Cross-entropy plus the gain of an adversary, a network that trains beside each model.

    In each step the adversary takes one of Adam upwards on its gain, from the model's batch and
    references drawn anew, then the model one downwards on its loss plus `strength` times the gain.

    Args:
        build_adversary: one untrained network, from an answer (probabilities) beside its label
            (N, 2 * classes) to one logit, (N, 1).
        references: (R, ...) inputs that no model is trained on.
        reference_labels: (R,) class indices, or (R, classes) probabilities.
        strength: weight of the gain, 0 or more.
        gain: from the adversary's logits of members (..., B) and of references (..., B) to (...).
        lr: learning rate of the adversaries.

    Raises:
        ValueError: references and labels are not equally many or none, or strength is negative.
    """
    if len(references) != len(reference_labels) or not len(references):
        raise ValueError(f"{len(references)} references but {len(reference_labels)} labels")
    if not strength >= 0:
        raise ValueError(f"strength {strength} must be 0 or more")

    def objective(net, state, which, seeds):
        draws = [torch.Generator().manual_seed(seeding.derive(s, "references")) for s in seeds]
        adversaries = [
            seeding.initialized(build_adversary, seeding.derive(s, "adversary")) for s in seeds
        ]
        other = stack_module_state([one.to(references.device) for one in adversaries])[0]
        answer, judge = stacked.forward_of(net), stacked.forward_of(adversaries[0])
        update = stacked.updater(list(other.values()), "adam", lr)

        fixed = stacked.detached(state)  # the same values

        def beside(logits, y):
            y = y if y.ndim == logits.ndim else F.one_hot(y, logits.shape[-1])
            return torch.cat([logits.softmax(-1), y], -1)

        def gained(seen, batch):
            said = judge(other, seen).squeeze(-1)
            return gain(said[:, :batch], said[:, batch:]).sum()

        def gradients(x, y):
            batch = x.shape[1]
            rows = [torch.randint(len(references), (batch,), generator=g) for g in draws]
            rows = torch.stack(rows).to(x.device)
            with torch.enable_grad():
                logits = answer(state, x)
                outside = answer(fixed, references[rows])
                seen = torch.cat([beside(logits, y), beside(outside, reference_labels[rows])], 1)
                gains = gained(seen.detach(), batch)
                update(torch.autograd.grad(-gains, list(other.values())))
                flat = logits.flatten(0, 1), y.flatten(0, 1)
                loss = F.cross_entropy(*flat, reduction="sum") / batch
                loss = loss + strength * gained(seen, batch)
                found = torch.autograd.grad(loss, list(state.values()))
            return logits.detach(), list(found)

        return gradients

    return objective


def dropout(rate: float) -> Objective:
    """Cross-entropy with dropout: each hidden unit of a plain network is left out by a coin.

    Args:
        rate: the chance to be left out, from 0 to below 1.

    Raises:
        ValueError: the rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate {rate} must be at least 0 and below 1")

    def objective(net, state, which, seeds):
        draws = [torch.Generator().manual_seed(seeding.derive(s, "dropout")) for s in seeds]

        def forward(state, x):
            for i, layer in enumerate(net):
                x = stacked.forward([layer], _of_layer(state, i), x)
                if isinstance(layer, nn.ReLU | nn.Tanh | nn.Sigmoid):
                    coins = torch.stack([torch.rand(x.shape[1:], generator=g) for g in draws])
                    x = x * (coins.to(x.device) >= rate) / (1 - rate)
            return x

        def gradients(x, y):
            logits, found = stacked.by_autograd(forward, state, x, y)
            return logits, list(found.values())

        return gradients

    return objective


def masked(start: stacked.State, masks: stacked.State) -> Objective:
    """Cross-entropy from given weights on, of which the masked ones are zero and stay so.

    Args:
        start: the models' weights, each (K, ...), by name.
        masks: of the same names and shapes, 1 for weights that train and 0 for the others.
    """

    def objective(net, state, which, seeds):
        chosen = [masks[name][which] for name in state]
        for (name, value), mask in zip(state.items(), chosen, strict=True):
            value.detach().copy_(start[name][which] * mask)
        plain = stacked.gradients_of(net, state)

        def gradients(x, y):
            logits, found = plain(x, y)
            return logits, [g * mask for g, mask in zip(found, chosen, strict=True)]

        return gradients

    return objective


def _of_layer(state, i):
    return {f"0.{n}": state[f"{i}.{n}"] for n in ("weight", "bias") if f"{i}.{n}" in state}
