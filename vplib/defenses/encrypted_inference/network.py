"""The CryptoNets network in plaintext: its integer form, its bit budget, its decryption error.

Everything here is what can be known before anything is encrypted. NumPy only, for the server's
process imports it.
"""

from dataclasses import dataclass, replace

import numpy as np

from vplib import threads


class OverBudget(ValueError):
    """The largest possible result does not fit below the coefficient modulus."""


def positions(image_size: int, kernel: int, stride: int, padding: int) -> int:
    """Positions of a kernel in a row, all in pixels; below 1 where the kernel does not fit."""
    return (image_size + 2 * padding - kernel) // stride + 1


def check_layout(layout: dict, names: tuple, image_size: int) -> None:
    """Refuses what an offer says of its network where no network can be so.

    With its padding a picture may grow to twice its height and width, for a client that encrypts
    pixel by pixel does what the layout asks.

    Args:
        layout: whole numbers by name, a stranger's.
        names: what a layout of this form holds.
        image_size: in pixels.

    Raises:
        ValueError: there is no network with these numbers.
    """
    fits = isinstance(layout, dict) and set(layout) == set(names)
    fits = fits and all(type(v) is int and v >= (n != "padding") for n, v in layout.items())
    if fits:  # without a kernel in the layout, that of one pixel fits wherever one does
        shape = layout.get("kernel", 1), layout.get("stride", 1), layout.get("padding", 0)
        width, size = positions(image_size, *shape), image_size + 2 * shape[2]
        fits = max(shape) <= size <= size + -size % shape[1] <= 2 * image_size
    if not fits or layout.get("width", width) != width:
        raise ValueError(f"no network on {image_size}x{image_size} pixels has the layout {layout}")


@dataclass(frozen=True)
class SquareNetwork:
    """Convolution, square, dense, square, dense: only sums and products, on one grey channel.

    Args:
        kernel: (C, k, k) of the convolution.
        conv_bias: (C,).
        fc1: (H, C * w * w), for the w x w positions of the kernel, channel by channel.
        fc1_bias: (H,).
        fc2: (classes, H).
        fc2_bias: (classes,).
        image_size: height and width in pixels.
        stride: of the convolution, in pixels.
        padding: zeros around the image, in pixels.

    Raises:
        ValueError: the shapes do not fit each other, or a number is not finite.

    Source:
        Gilad-Bachrach et al., CryptoNets, ICML 2016: 5 kernels of 5x5, stride 2, 100
        and 10 units, after the linear layers between the squares are merged into one.
    """

    kernel: np.ndarray
    conv_bias: np.ndarray
    fc1: np.ndarray
    fc1_bias: np.ndarray
    fc2: np.ndarray
    fc2_bias: np.ndarray
    image_size: int = 28
    stride: int = 2
    padding: int = 1

    def __post_init__(self):
        """Refuses layers that do not fit each other."""
        fits = self.kernel.ndim == 3 and self.kernel.shape[1] == self.kernel.shape[2]
        fits = fits and self.image_size + 2 * self.padding >= self.kernel.shape[1]
        fits = fits and self.fc1.shape[1:] == (len(self.kernel) * self.width**2,)
        fits = fits and self.fc2.shape[1:] == self.fc1.shape[:1]
        for weight, bias in self.layers():
            fits = fits and bias.shape == weight.shape[:1]
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError("weights and biases must be finite; was the model trained to NaN?")
        if not fits:
            shapes = [weight.shape for weight, _ in self.layers()]
            raise ValueError(
                f"layers {shapes} do not fit each other on {self.image_size}x{self.image_size} "
                f"images with stride {self.stride} and padding {self.padding}"
            )

    @property
    def width(self) -> int:
        """Positions of the kernel in a row."""
        return positions(self.image_size, self.kernel.shape[-1], self.stride, self.padding)

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weight and bias of the three layers."""
        return [(self.kernel, self.conv_bias), (self.fc1, self.fc1_bias), (self.fc2, self.fc2_bias)]

    def with_layers(self, layers) -> "SquareNetwork":
        """The same network with other weights and biases, three pairs."""
        names = "kernel", "conv_bias", "fc1", "fc1_bias", "fc2", "fc2_bias"
        return replace(self, **dict(zip(names, (v for pair in layers for v in pair), strict=True)))

    def windows(self, images: np.ndarray) -> np.ndarray:
        """What the kernel sees at each position: (N, w, w, k, k) of (N, H, W) images."""
        pad, k = self.padding, self.kernel.shape[-1]
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))
        found = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (1, 2))
        return found[:, :: self.stride, :: self.stride]

    @threads.one_thread()
    def logits(self, images) -> np.ndarray:
        """(N, classes) answers in float64, in the clear.

        Args:
            images: (N, 1, H, W) or (N, H, W); any numbers, so that noise can be tried.
        """
        images = np.asarray(images, float).reshape(-1, self.image_size, self.image_size)
        found = []
        for part in np.split(images, range(512, len(images), 512)):
            x = np.tensordot(self.windows(part), self.kernel, ((3, 4), (1, 2))) + self.conv_bias
            x = x.transpose(0, 3, 1, 2).reshape(len(part), -1) ** 2
            found.append((x @ self.fc1.T + self.fc1_bias) ** 2 @ self.fc2.T + self.fc2_bias)
        return np.concatenate(found)

    def bounds(self) -> list[float]:
        """What no image in [0, 1] exceeds, in front of each square and at the logits.

        By interval arithmetic, layer by layer.
        """
        found, low, high = [], np.zeros(0), np.zeros(0)
        for weight, bias in self.layers():
            weight = weight.reshape(len(weight), -1)
            up, down = np.maximum(weight, 0), np.minimum(weight, 0)
            if not found:
                low, high = down.sum(1) + bias, up.sum(1) + bias
                low, high = (np.repeat(v, self.width**2) for v in (low, high))
            else:
                most = np.maximum(low**2, high**2)
                least = np.where((low < 0) & (high > 0), 0, np.minimum(low**2, high**2))
                low, high = up @ least + down @ most + bias, up @ most + down @ least + bias
            found.append(float(np.maximum(np.abs(low), np.abs(high)).max()))
        return found

    def logit_bound(self) -> float:
        """No image in [0, 1] has a logit beyond this; at least 1e-30."""
        return max(self.bounds()[-1], 1e-30)

    def enlarged(self) -> tuple["SquareNetwork", float]:
        """The same network, no layer bounded below 1, and the factor by which its logits grew.

        Under encryption with a fixed scale, what is much smaller than 1 drowns in the noise.
        """
        a, b, c = (1 / bound if 0 < bound < 1 else 1.0 for bound in self.bounds())
        (kernel, conv), (fc1, first), (fc2, last) = self.layers()
        layers = (kernel * a, conv * a), (fc1 * b / a**2, first * b), (fc2 * c / b**2, last * c)
        return self.with_layers(layers), c


def random_network(seed: int = 0, image_size: int = 7, **sizes: int) -> SquareNetwork:
    """An untrained network, for checks and timings.

    Args:
        seed: of its weights.
        image_size: in pixels.
        **sizes: maps, kernel, hidden, classes, stride, padding.
    """
    rng, n = np.random.default_rng(seed), dict(maps=2, kernel=5, hidden=8, classes=3) | sizes
    shape = {name: n.pop(name) for name in ("stride", "padding") if name in n}
    kernel = rng.normal(size=(n["maps"], n["kernel"], n["kernel"])) / n["kernel"]
    width = positions(image_size, n["kernel"], shape.get("stride", 2), shape.get("padding", 1))
    fan = n["maps"] * width**2
    return SquareNetwork(
        kernel, 0.1 * rng.normal(size=n["maps"]),
        rng.normal(size=(n["hidden"], fan)) / np.sqrt(fan), 0.1 * rng.normal(size=n["hidden"]),
        rng.normal(size=(n["classes"], n["hidden"])) / np.sqrt(n["hidden"]),
        0.1 * rng.normal(size=n["classes"]), image_size=image_size, **shape,
    )  # fmt: skip


@dataclass(frozen=True)
class IntegerNetwork:
    """A network of whole numbers that computes what a rounded network does, times a scale.

    Args:
        weights: three arrays of whole numbers (as float64, each below 2^53).
        biases: three lists of Python integers, at the scale of the layer's result.
        rounded: the same network with the scales divided out, in floats.
        input_scale: pixels are multiplied by it.
        scale: logits are multiplied by it.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[list[int], ...]
    rounded: SquareNetwork
    input_scale: float
    scale: float

    @property
    def bits(self) -> float:
        """Bits that the largest possible logit needs, its sign included."""
        return float(np.log2(self.rounded.logit_bound()) + np.log2(self.scale) + 1)


def quantize(
    network: SquareNetwork, weight_bits: tuple[int, int, int] = (10, 10, 10), input_bits: int = 20
) -> IntegerNetwork:
    """Rounds the weights of each layer to whole numbers of so many bits, sign apart.

    Args:
        network: with float weights.
        weight_bits: of the convolution and of both dense layers, each 1 to 14.
        input_bits: a pixel of 1 becomes 2^input_bits.

    Raises:
        ValueError: a number of bits is out of range.

    Source:
        Gilad-Bachrach et al., CryptoNets, ICML 2016 (fixed precision to integers).
        Squares square the scale: input^4 * conv^4 * fc1^2 * fc2 at the end.
    """
    if len(weight_bits) != 3 or not all(1 <= b <= 14 for b in weight_bits):
        raise ValueError(f"weight_bits must be three numbers from 1 to 14, not {weight_bits}")
    if not 1 <= input_bits <= 40:
        raise ValueError(f"input_bits must lie in 1..40, not {input_bits}")
    scale, weights, biases, rounded = 2.0**input_bits, [], [], []
    bounds, largest_input = network.bounds(), 1.0
    for i, ((weight, bias), bits) in enumerate(zip(network.layers(), weight_bits, strict=True)):
        fan = weight[0].size * largest_input  # where a bias is all that counts, coarse weights do
        step = (2**bits - 1) / (max(np.abs(weight).max(), bounds[i] / fan if fan else 0) or 1.0)
        largest_input = bounds[i] ** 2
        scale = (scale if i == 0 else scale**2) * step
        whole = [int(np.rint(b)) for b in bias * scale]
        weights.append(np.rint(weight * step))
        biases.append(whole)
        rounded.append((weights[-1] / step, np.array([b / scale for b in whole])))
    return IntegerNetwork(
        tuple(weights), tuple(biases), network.with_layers(rounded), 2.0**input_bits, scale
    )


def check_budget(network: IntegerNetwork, modulus_bits: float) -> None:
    """Refuses a network whose results could wrap around; an overflow would be silent.

    Args:
        network: to be evaluated on images in [0, 1].
        modulus_bits: log2 of the coefficient modulus that is left at decryption.

    Raises:
        OverBudget: the largest possible logit needs more bits.
    """
    if not network.bits <= modulus_bits:
        raise OverBudget(
            f"logits may need {network.bits:.1f} bits, but the modulus has {modulus_bits:.1f}; "
            "use fewer weight_bits or input_bits, or more primes"
        )


def slot_noise(poly_modulus_degree: int, scale: float) -> float:
    """Standard deviation of a freshly encrypted slot's real part, under a symmetric key.

    Each of the N coefficients gets SEAL's centered binomial noise of variance 21/2 and the
    encoder's rounding of variance 1/12; a slot is a sum of all of them with unit factors.

    Args:
        poly_modulus_degree: N.
        scale: a value of 1 is encoded as this.
    """
    return float(np.sqrt(poly_modulus_degree / 2 * (21 / 2 + 1 / 12)) / scale)


def predict_error(network: SquareNetwork, images, noise: float, seed: int = 0) -> float:
    """The decryption error of the logits, from plaintext alone: RMS over images and classes.

    Args:
        network: as the server evaluates it.
        images: (N, 1, H, W) in [0, 1].
        noise: standard deviation of each encrypted pixel, see `slot_noise`.
        seed: of the noise that is tried.
    """
    images = np.asarray(images, float)
    noisy = images + np.random.default_rng(seed).normal(0, noise, images.shape)
    return float(np.sqrt(((network.logits(noisy) - network.logits(images)) ** 2).mean()))
