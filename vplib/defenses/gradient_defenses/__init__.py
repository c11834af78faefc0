"""What a client does to its gradient before it leaves, and who inverts it nevertheless."""

from vplib.defenses.gradient_defenses.adaptive import direction, invert, skip_zeros
from vplib.defenses.gradient_defenses.messages import (
    add_noise,
    clip_and_noise,
    prune,
    sensitivities,
    soteria,
)
from vplib.defenses.gradient_defenses.rounds import send, train
