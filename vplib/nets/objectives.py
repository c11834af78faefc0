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
    steps: int = 1,
) -> Objective:
    """Cross-entropy plus the gain of an adversary, a network that trains beside each model.

    By turns the adversary takes steps of Adam upwards on its gain, one for each of the last batches
    and references drawn anew, then the model one downwards on its loss plus `strength` times the
    gain on the newest batch.

    Args:
        build_adversary: one untrained network, from an answer (probabilities) beside its label
            (N, 2 * classes) to one logit, (N, 1).
        references: (R, ...) inputs that no model is trained on.
        reference_labels: (R,) class indices, or (R, classes) probabilities.
        strength: weight of the gain, 0 or more.
        gain: from the adversary's logits of members (..., B) and of references (..., B) to (...).
        lr: learning rate of the adversaries.
        steps: of the adversary for one of the model: how many of the last batches it sees again.

    Raises:
        ValueError: references and labels are not equally many or none, strength is negative, or
            there is no step.
    """
    if len(references) != len(reference_labels) or not len(references):
        raise ValueError(f"{len(references)} references but {len(reference_labels)} labels")
    if not (strength >= 0 and steps >= 1):
        raise ValueError(f"strength {strength} must be 0 or more, steps {steps} 1 or more")

    def objective(net, state, which, seeds):
        draws = [torch.Generator().manual_seed(seeding.derive(s, "references")) for s in seeds]
        nets = [seeding.initialized(build_adversary, seeding.derive(s, "adversary")) for s in seeds]
        other = stack_module_state([one.to(references.device) for one in nets])[0]
        answer, judge = stacked.forward_of(net), stacked.forward_of(nets[0])
        update = stacked.updater(list(other.values()), "adam", lr)

        fixed, held = stacked.detached(state), []  # the same values; the last batches

        def beside(logits, y):
            y = y if y.ndim == logits.ndim else F.one_hot(y, logits.shape[-1])
            return torch.cat([logits.softmax(-1), y], -1)

        def gained(*seen):
            said = judge(other, torch.cat(seen, 1)).squeeze(-1)
            return gain(*said.split([one.shape[1] for one in seen], 1)).sum()

        def gradients(x, y):
            held.append((x, y))
            del held[:-steps]
            old, labels = (torch.cat(parts, 1) for parts in zip(*held, strict=True))
            sizes, total = [one.shape[1] for one, _ in held], (len(references), old.shape[1:2])
            rows = torch.stack([torch.randint(*total, generator=g) for g in draws])
            inside = beside(answer(fixed, old), labels).split(sizes, 1)
            outside = beside(answer(fixed, references[rows]), reference_labels[rows])
            with torch.enable_grad():
                for seen in zip(inside, outside.split(sizes, 1), strict=True):  # newest is last
                    update(torch.autograd.grad(-gained(*seen), list(other.values())))
                logits = answer(state, x)
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(0, 1), reduction="sum")
                loss = loss / x.shape[1] + strength * gained(beside(logits, y), seen[1])
                return logits.detach(), list(torch.autograd.grad(loss, list(state.values())))

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
