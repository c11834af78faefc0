"""Networks that start from what they learned of ImageNet, as the papers' victims and clones do."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib.datasets import fetching
from vplib.paths import data_root

WEIGHTS = ("imagenet", "random")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class Prepared(nn.Module):
    """Images as ImageNet's networks take them: three colours, of mean 0 and deviation 1.

    Args:
        size: smaller images are scaled up to this height and width.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalized colours."""
        if min(images.shape[2:]) < self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear")
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std


def squeezenet(num_classes: int, *, size: int, weights: str = "imagenet") -> nn.Sequential:
    """Torchvision's SqueezeNet 1.1 with a new last layer.

    Args:
        num_classes: number of logits.
        size: images that are smaller are scaled up to it, in pixels.
        weights: "imagenet", or "random" where there is no network to get them from.

    Returns:
        A model from (N, 1 or 3, H, W) images to (N, num_classes) logits.

    Raises:
        ValueError: there are no such weights.
        DatasetUnavailable: ImageNet's are not on this machine and cannot be fetched.
    """
    from torchvision import models as tv

    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
    network = tv.squeezenet1_1(weights=None, num_classes=num_classes)
    if weights == "imagenet":
        kept = {k: v for k, v in _imagenet().items() if k.startswith("features.")}
        network.load_state_dict(kept, strict=False)
    return nn.Sequential(Prepared(size), network)


@cache
def _imagenet() -> dict[str, Tensor]:
    from torchvision.models import SqueezeNet1_1_Weights

    url = SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    name = url.rpartition("/")[2]

    def download(folder):
        torch.hub.download_url_to_file(url, folder / name, name[-12:-4], progress=False)

    told = dict(url=url, files=f"{url} to {{}}", instead="random")
    root = data_root() / "weights"
    place = fetching.fetched("ImageNet's weights", root, name, download, **told)
    with fetching.reading("ImageNet's weights", place):
        return torch.load(place, weights_only=True)
