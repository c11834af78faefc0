"""Photos with somebody else's identity: an adversarial de-identifier, and fitted parameters."""

from vplib.images.deidentification.fitting import Space, fit, fit_space, named
from vplib.images.deidentification.swapping import Step, Swapper, train_swapper
