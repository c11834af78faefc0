"""What a client does to its gradient before it leaves, and who inverts it nevertheless."""

from vplib.defenses.gradient_defenses.adaptive import direction, leave_out, skip_zeros
from vplib.defenses.gradient_defenses.messages import clip_and_noise, sensitivities, soteria
from vplib.defenses.gradient_defenses.rounds import send, train
