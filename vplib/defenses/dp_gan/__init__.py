"""Private generators, each with its noise where its paper puts it."""

from vplib.defenses.dp_gan.dp_merf import random_features, train_dp_merf
from vplib.defenses.dp_gan.dpgan import push, release, train_dpgan, with_class
from vplib.defenses.dp_gan.gs_wgan import (
    one_of_many_epsilon,
    one_of_many_sigma,
    train_gs_wgan,
    upstream,
)
from vplib.defenses.dp_gan.pate_gan import train_pate_gan, vote_epsilon, vote_scale
