"""Cloaks against face recognition, and trackers that know them."""

from vplib.images.adversarial_cloaking.cloaks import (
    choose_target,
    cloak,
    dssim,
    encode,
    nearest,
    overlay,
    penalized,
    remove_overlay,
    softmax_head,
    to_jpeg,
    to_png,
    universal_perturbation,
    within_budget,
)
