"""Images in memory, as tensors: `load(name)` for embedded, downloaded, rendered and own images."""

from vplib.datasets import faces, transforms
from vplib.datasets.fetching import DatasetUnavailable
from vplib.datasets.imageset import ImageSet
from vplib.datasets.loading import NAMES, check_apart, check_name, load
from vplib.datasets.transforms import resize
