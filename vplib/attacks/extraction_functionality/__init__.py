"""Copying a model by asking it: knockoffs, and what their queries are made of."""

from vplib.attacks.extraction_functionality.knockoff import (
    REWARDS,
    as_targets,
    ask_all,
    choose_adaptively,
    draw_rows,
    reward_certainty,
    train_clones,
    update_preferences,
)
