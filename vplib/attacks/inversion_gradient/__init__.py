"""An image from a gradient that a client shares."""

from vplib.attacks.inversion_gradient.leakage import (
    infer_label,
    invert_gradient,
    match_batches,
    score_psnr,
    stack_messages,
)
