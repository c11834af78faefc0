"""Copying a model by asking it: knockoffs, and what their queries are made of."""

from vplib.attacks.extraction_functionality import selection, transfer
from vplib.attacks.extraction_functionality.knockoff import (
    COIN,
    REWARDS,
    as_targets,
    ask_all,
    budgets_with,
    choose_adaptively,
    draw_rows,
    reward_certainty,
    train_clones,
    update_preferences,
)
from vplib.attacks.extraction_functionality.pretrained import squeezenet
