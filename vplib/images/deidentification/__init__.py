"""Photos with somebody else's identity, and what hides in them all the same."""

from vplib.images.deidentification.fitting import Space, fit, fit_space, named
from vplib.images.deidentification.hiding import hide, reveal
from vplib.images.deidentification.swapping import Step, Swapper, train_swapper
