"""Photos with differentially private noise: six mechanisms, a latent space, and an audit."""

from vplib.images.dp_images.audit import distinguish, keeps, least_rate, most_named
from vplib.images.dp_images.latent import Latent, fit_latent
from vplib.images.dp_images.mechanisms import (
    add_laplace,
    cut,
    laplace,
    metric_noise,
    noise_codes,
    noise_features,
    noise_identity,
    noise_latent,
    noise_values,
    pixelize,
    protection,
    replace_crops,
    with_values,
    with_vectors,
)
