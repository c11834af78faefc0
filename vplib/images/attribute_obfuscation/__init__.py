"""Hiding an attribute of a face: chosen anew for an album, inverted, or made uncertain."""

from vplib.images.attribute_obfuscation.methods import Tools, anonymize, interpolate, invert, scrub
from vplib.images.attribute_obfuscation.reading import (
    attributes_of,
    entropy,
    missing_bits,
    over_people,
    read_attribute,
    seen_by,
    train_readers,
)
from vplib.images.attribute_obfuscation.stages import choose, fit_transport, train_estimator
