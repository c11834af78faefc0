"""Training with differential privacy, and its audit."""

from vplib.defenses.dp_sgd.audit import (
    correct_guesses,
    likelihood_ratio,
    lower_bound,
    run_with_canaries,
)
from vplib.defenses.dp_sgd.bounds import moments_bound, strong_composition, zcdp_reshuffled
from vplib.defenses.dp_sgd.examples import example_rows
from vplib.defenses.dp_sgd.private_training import clipped_sums, train_private
