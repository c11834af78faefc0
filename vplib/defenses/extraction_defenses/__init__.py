"""Defenses of a model that is asked too much: who is watched, what is answered, what is learned."""

from vplib.defenses.extraction_defenses.monitor import coverage, information_gain
from vplib.defenses.extraction_defenses.poisoning import (
    equal_noise,
    mad,
    misinform,
    reverse_sigmoid,
    undo_mad,
)
from vplib.defenses.extraction_defenses.prada import Watch, choose_delta, normality
from vplib.defenses.extraction_defenses.streams import augment, search_lines
