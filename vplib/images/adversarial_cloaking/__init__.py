"""Cloaks against face recognition, and trackers that know them."""

from vplib.images.adversarial_cloaking.cloaks import (
    choose_target,
    cloak,
    dssim,
    encode,
    linear_head,
    nearest,
    overlay,
    remove_overlay,
    to_jpeg,
    to_png,
    universal_perturbation,
    within_budget,
)
