"""An image from a gradient that a client shares."""

from vplib.attacks.inversion_gradient.leakage import (
    infer_label,
    invert_gradient,
    match_batches,
    score_psnr,
    simulate,
    squared_distance,
    stack_messages,
)
from vplib.attacks.inversion_gradient.network import lenet
from vplib.attacks.inversion_gradient.protection import add_noise, prune
