"""What who inverts a defended gradient compares: all of it, or what the defense has left alone."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vplib.victims import federated

State = dict[str, Tensor]
Objective = Callable[[State, State], Tensor]


def direction(found: State, wanted: State) -> Tensor:
    """One minus the cosine between a guess's message and the one that came.

    Unlike a distance it does not depend on how well the network knows the image already, which
    makes a gradient short.

    Source: Geiping et al., Inverting gradients, NeurIPS 2020, equation 4.
    """
    dot = sum((found[name] * wanted[name]).sum() for name in wanted)
    norms = [sum(s[name].square().sum() for name in wanted).sqrt() for s in (found, wanted)]
    return 1 - dot / (norms[0] * norms[1]).clamp(min=1e-30)


def skip_zeros(found: State, wanted: State) -> Tensor:
    """As `direction`, over the entries that came: a zero is read as "was taken away"."""
    return direction({name: found[name] * (wanted[name] != 0) for name in wanted}, wanted)


def leave_out(
    model: nn.Module, ignore_layers: Sequence[str], objective: Objective = direction
) -> Objective:
    """The objective of an attacker who ignores some layers, for `inversion_gradient`.

    Args:
        model: as the server sent it.
        ignore_layers: parameters to leave out, or layers, by the beginning of their names: "7" is
            "7.weight" and "7.bias".
        objective: from a guess's message and the one that came to a number, not negative.

    Returns:
        The objective on the rest of the parameters.

    Raises:
        ValueError: a name is no parameter's, or nothing is left.
    """
    names = list(federated.trainable(model))
    for layer in ignore_layers:
        if not any(f"{name}.".startswith(f"{layer}.") for name in names):
            raise ValueError(f"the model has no parameter {layer!r}; it has {', '.join(names)}")
    left = [n for n in names if not any(f"{n}.".startswith(f"{i}.") for i in ignore_layers)]
    if not left:
        raise ValueError("all layers are ignored, so nothing is left to invert")
    return lambda found, wanted: objective(
        {n: found[n] for n in left}, {n: wanted[n] for n in left}
    )
