"""Encrypted inference in its plain form, on TenSEAL's public API: one pixel a ciphertext.

The thousands of numbers in a ciphertext are the same pixel of thousands of images, so the server
computes with "pixels" and answers the whole batch. `encrypted_lanes` and `encrypted_taps` are fast
forms; where their self-check fails, `batch_server` and `connect` lead here.
"""

import itertools
import secrets
from collections.abc import Iterable, Iterator

import numpy as np

from vplib.defenses.encrypted_inference import messages
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference.messages import MessageError, Parameters

import tenseal  # isort: skip  (encrypted_messages says what to do where it is missing)

# The first prime holds the logits, whose bound is far above what real images reach.
PARAMETERS = Parameters(8192, (44, 26, 26, 26, 26, 26, 44), 26)


def evaluate(x, network: networks.SquareNetwork):
    """The network on a `CKKSTensor` whose elements are ciphertexts: sums and products alone.

    Args:
        x: (stride, stride, h, h), as `phases` orders the pixels.
        network: its weights are not encrypted.

    Returns:
        A `CKKSTensor` of (1, classes) logits.
    """
    k, s, w = network.kernel.shape[-1], network.stride, network.width
    hidden = 0
    parts = np.split(network.fc1, len(network.kernel), axis=1)
    for kernel, bias, weight in zip(network.kernel, network.conv_bias, parts, strict=True):
        y = float(bias)
        for i, j in itertools.product(range(k), repeat=2):
            top, left = i // s, j // s
            seen = x[i % s : i % s + 1, j % s : j % s + 1, top : top + w, left : left + w]
            y = seen.reshape([1, w * w]) * float(kernel[i, j]) + y
        hidden = y.square().mm(weight.T.tolist()) + hidden
    hidden = hidden + network.fc1_bias[None].tolist()
    return hidden.square().mm(network.fc2.T.tolist()) + network.fc2_bias[None].tolist()


def phases(images: np.ndarray, network_layout: dict) -> np.ndarray:
    """(N, stride, stride, h, h): padded images, so that what a kernel sees is a plain slice.

    Args:
        images: (N, H, W).
        network_layout: stride and padding, as the offer has them.
    """
    s, pad = network_layout["stride"], network_layout["padding"]
    size = images.shape[1] + 2 * pad
    more = (0, 0), (pad, pad + -size % s), (pad, pad + -size % s)
    padded = np.pad(images, more)
    h = padded.shape[1] // s
    return padded.reshape(len(images), h, s, h, s).transpose(0, 2, 4, 1, 3)


class TensorServer:
    """Answers batches with TenSEAL under a client's evaluation keys; never holds a secret key.

    Args:
        network: in floats.
        session_key: of the HMAC, shared with the client.
        known: an image of the server's, (H, W) in [0, 1], whose answer the offer promises.
        parameters: of the encryption; six products need five primes between the outer two.

    Raises:
        OverBudget: the first prime leaves the logits too little room for their fraction.
    """

    form = "tensor"

    def __init__(
        self,
        network: networks.SquareNetwork,
        session_key: bytes,
        known: np.ndarray,
        parameters: Parameters = PARAMETERS,
    ):
        self.session_key, self.parameters = session_key, parameters
        room = parameters.coeff_bits[0] - 1 - parameters.scale_bits
        self.factor = 2.0 ** np.floor(room - np.log2(network.logit_bound()))
        if self.factor < 2.0**-5:  # measured: noise is some 2^-8 of the last scale
            raise networks.OverBudget(
                f"logits up to {network.logit_bound():.3g} leave no fraction in "
                f"{parameters.coeff_bits[0]} bits; use a larger first prime"
            )
        self.known, self.network = np.asarray(known, float), network
        tiny = 2.0**-20  # TenSEAL refuses a product with what encodes to zero
        # TenSEAL divides each product by a prime and takes it for 2^scale_bits, which is some 0.5 %
        # more. Squares have no weight to put that right, so the next product does it for them.
        _, primes = parameters.seal_context()
        drift = [prime / 2.0**parameters.scale_bits for prime in primes[-2:-7:-1]]
        repairs = drift[0], drift[1] * drift[2], drift[3] * drift[4] * self.factor
        layers = [
            (np.where(np.abs(weight) < tiny, tiny, weight) * repair, bias)
            for (weight, bias), repair in zip(network.layers(), repairs, strict=True)
        ]
        layers[2] = layers[2][0], layers[2][1] * self.factor
        self.scaled, self._contexts = network.with_layers(layers), {}
        # Measured, 20 networks: at most 0.4 % of the largest logit, 0.1 % for most.
        self.tolerance = 0.01 * np.abs(network.logits(self.known)).max() + 0.5 / self.factor

    def offer(self) -> bytes:
        """The server's public description."""
        return messages.write_offer(
            self.session_key, self.form, self.network, self.parameters, self.factor, self.known,
            self.tolerance, stride=self.network.stride, padding=self.network.padding,
        )  # fmt: skip

    def answer(self, message: bytes) -> bytes:
        """The answer to a client's keys ("ready") or to its request.

        Raises:
            MessageError: it is not of this server's, holds a secret key, or comes before the keys.
        """
        header, body = messages.unpack_message(
            self.session_key, message, ("keys", "request"), form=self.form,
            parameters=self.parameters.id,
        )  # fmt: skip
        about = dict(form=self.form, parameters=self.parameters.id, key=header["key"])
        if header["kind"] == "keys":
            context = tenseal.context_from(bytes(body), n_threads=1)
            if context.is_private():
                raise MessageError("the keys hold the secret key, which must stay with the client")
            self._contexts = {header["key"]: context}
            return messages.pack_message(self.session_key, "ready", **about)
        if header["key"] not in self._contexts:
            raise MessageError("no evaluation keys of this client: send client.keys() first")
        x = tenseal.ckks_tensor_from(self._contexts[header["key"]], bytes(body))
        found = evaluate(x, self.scaled).serialize()
        return messages.pack_message(
            self.session_key, "answer", found, nonce=header["nonce"], **about
        )


class TensorClient:
    """Holds the secret key in a TenSEAL context; encrypts a batch, decrypts the answer.

    Args:
        offer: the server's, as bytes.
        session_key: of the HMAC, shared with the server.

    Raises:
        MessageError: the offer is not of this session or form.
    """

    def __init__(self, offer: bytes, session_key: bytes):
        self.offer = messages.Offer(session_key, offer, TensorServer.form)
        self.session_key = session_key
        self.parameters = self.offer.parameters
        self.batch_size = self.parameters.slots - 1  # one slot holds the known-answer image
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            self.parameters.poly_modulus_degree,
            coeff_mod_bit_sizes=list(self.parameters.coeff_bits),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._context.global_scale = 2.0**self.parameters.scale_bits
        self._context.generate_relin_keys()
        self.key_id, self._count, self._nonce = secrets.token_hex(8), 0, ""

    def _about(self) -> dict:
        return dict(form="tensor", parameters=self.parameters.id, key=self.key_id)

    def keys(self) -> bytes:
        """What the server needs to multiply: relinearization keys, without the secret key."""
        public = self._context.serialize(save_secret_key=False, save_galois_keys=False)
        return messages.pack_message(self.session_key, "keys", public, **self._about())

    def check(self, ask) -> None:
        """Nothing to ask: the known-answer image has a slot in each request."""

    def encrypt(self, images) -> Iterator[bytes]:
        """The request for up to `batch_size` images: one ciphertext a pixel.

        Args:
            images: (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: the images are not as above.
        """
        images = messages.check_images(images, self.offer.image_size, self.batch_size)
        self._count, self._nonce = len(images), secrets.token_hex(16)
        batch = phases(np.concatenate([images, self.offer.known_image[None]]), self.offer.layout)
        x = tenseal.ckks_tensor(self._context, batch.tolist(), batch=True)
        yield messages.pack_message(
            self.session_key, "request", x.serialize(), nonce=self._nonce, **self._about()
        )

    def decrypt(self, answers: Iterable[bytes]) -> np.ndarray:
        """(N, classes) logits of the images encrypted last.

        Args:
            answers: the one answer.

        Raises:
            MessageError: it is altered, not to this request, or the known-answer image came back
                wrong.
        """
        (message,) = answers
        _, body = messages.unpack_message(
            self.session_key, message, "answer", nonce=self._nonce, **self._about()
        )
        found = tenseal.ckks_tensor_from(self._context, bytes(body)).decrypt()
        found = np.array(found.tolist())[: self._count + 1, 0] / self.offer.scale
        messages.check_known_answer(found[-1], self.offer.known_logits, self.offer.tolerance)
        return found[:-1]


def batch_server(network: networks.SquareNetwork, session_key: bytes, known: np.ndarray, **bits):
    """The fastest batch server that works here: lanes, or the plain form with a word of why.

    Args:
        network: in floats.
        session_key: of the HMAC.
        known: the known-answer image.
        **bits: for `encrypted_network.quantize`.

    Returns:
        The server, and why it is the plain form (None for lanes).

    Raises:
        OverBudget: a result could overflow.
    """
    from vplib.defenses.encrypted_inference import lanes as encrypted_lanes

    if why := encrypted_lanes.self_check():
        return TensorServer(network, session_key, known), why
    quantized = networks.quantize(network, **bits)
    return encrypted_lanes.LaneServer(quantized, session_key, known), None


def single_server(network: networks.SquareNetwork, session_key: bytes, known: np.ndarray):
    """The fastest server of single images that works here: packed taps, or the plain form.

    Args:
        network: in floats.
        session_key: of the HMAC.
        known: the known-answer image.

    Returns:
        The server, and why it is the plain form (None for packed taps).

    Raises:
        OverBudget: the logits leave too little of the modulus.
    """
    from vplib.defenses.encrypted_inference import taps as encrypted_taps

    if why := encrypted_taps.self_check():
        return TensorServer(network, session_key, known), why
    return encrypted_taps.TapServer(network, session_key, known), None


def connect(offer: bytes, session_key: bytes):
    """The client for a server's offer, whichever form it is of.

    Args:
        offer: the server's, as bytes.
        session_key: of the HMAC.

    Raises:
        MessageError: the offer is not of this session.
    """
    from vplib.defenses.encrypted_inference import lanes as encrypted_lanes
    from vplib.defenses.encrypted_inference import taps as encrypted_taps

    clients = {
        "tensor": TensorClient, "lanes": encrypted_lanes.LaneClient,
        "taps": encrypted_taps.TapClient,
    }  # fmt: skip
    return clients[messages.Offer(session_key, offer).form](offer, session_key)


def random_network(seed: int = 0, image_size: int = 7, **sizes: int) -> networks.SquareNetwork:
    """An untrained network, for checks and timings.

    Args:
        seed: of its weights.
        image_size: in pixels.
        **sizes: maps, kernel, hidden, classes, stride, padding.
    """
    rng, n = np.random.default_rng(seed), dict(maps=2, kernel=5, hidden=8, classes=3) | sizes
    shape = {name: n.pop(name) for name in ("stride", "padding") if name in n}
    kernel = rng.normal(size=(n["maps"], n["kernel"], n["kernel"])) / n["kernel"]
    width = (image_size + 2 * shape.get("padding", 1) - n["kernel"]) // shape.get("stride", 2) + 1
    fan = n["maps"] * width**2
    made = networks.SquareNetwork(
        kernel, 0.1 * rng.normal(size=n["maps"]),
        rng.normal(size=(n["hidden"], fan)) / np.sqrt(fan), 0.1 * rng.normal(size=n["hidden"]),
        rng.normal(size=(n["classes"], n["hidden"])) / np.sqrt(n["hidden"]),
        0.1 * rng.normal(size=n["classes"]), image_size=image_size, **shape,
    )  # fmt: skip
    return made
