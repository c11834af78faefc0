"""A face from a name: inverting a class, by search, by trained networks, for an attribute."""

from vplib.attacks.inversion_class.attribute import infer_attribute
from vplib.attacks.inversion_class.search import (
    invert_class,
    invert_class_black_box,
    invert_latents,
)
from vplib.attacks.inversion_class.trained import train_gamin, train_inverters
