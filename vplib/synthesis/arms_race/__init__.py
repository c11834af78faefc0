"""What a table of attacks and defenses says to an owner who does not know who will come."""

from vplib.synthesis.arms_race.matrix import best_column, share_left, worst_case
