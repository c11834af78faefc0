"""What client and server exchange: bytes, each message under an HMAC, and a server's process."""

import hashlib
import hmac
import json
import math
import multiprocessing
import re
import secrets
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

try:
    import tenseal
    import zstandard  # noqa: F401  (encrypted_lanes reads SEAL's files with it)
    from tenseal import sealapi
except ImportError as error:
    raise ImportError(
        f"{error}; encrypted inference needs the extra `he`: pip install tenseal zstandard"
    ) from None

# Bits of the coefficient modulus up to which a ternary secret has 128 bits of classical security:
# Albrecht et al., Homomorphic encryption security standard, 2018, table 1.
STANDARD_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
SECURITY = 128
MAGIC, FORMAT, _FIXED = b"VPHE", 1, struct.Struct("<4sBIQ")
_TAG = 32


class MessageError(ValueError):
    """A message is not what it should be: truncated, altered, or meant for someone else."""


class Refused(MessageError):
    """The other side refused; its reason is the text."""


@dataclass(frozen=True)
class Parameters:
    """Encryption parameters of CKKS, at 128 bits or not at all.

    Args:
        poly_modulus_degree: N; N / 2 numbers fit into a ciphertext.
        coeff_bits: sizes of the primes; the last serves key switching only.
        scale_bits: a value of 1 is encoded as 2^scale_bits.

    Raises:
        ValueError: below 128 bits of security by the homomorphic encryption standard's table.
    """

    poly_modulus_degree: int
    coeff_bits: tuple[int, ...]
    scale_bits: int

    def __post_init__(self):
        """Refuses weak parameters, whoever makes them."""
        limit = STANDARD_BITS.get(self.poly_modulus_degree)
        if limit is None:
            raise ValueError(
                f"poly_modulus_degree must be one of {list(STANDARD_BITS)}, "
                f"not {self.poly_modulus_degree}"
            )
        if not self.coeff_bits or not all(2 <= bits <= 60 for bits in self.coeff_bits):
            raise ValueError(f"coeff_bits must be 2 to 60 each, not {self.coeff_bits}")
        if sum(self.coeff_bits) > limit:
            raise ValueError(
                f"{sum(self.coeff_bits)} bits of coefficient modulus at N = "
                f"{self.poly_modulus_degree} are weaker than {SECURITY} bits of security: at most "
                f"{limit} (homomorphic encryption standard); use fewer primes or a larger N"
            )

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext."""
        return self.poly_modulus_degree // 2

    @property
    def id(self) -> str:
        """Equal for equal parameters only."""
        text = json.dumps([self.poly_modulus_degree, list(self.coeff_bits), self.scale_bits])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def seal_context(self):
        """SEAL's context, which checks the security by its own table again."""
        found = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        found.set_poly_modulus_degree(self.poly_modulus_degree)
        found.set_coeff_modulus(
            sealapi.CoeffModulus.Create(self.poly_modulus_degree, list(self.coeff_bits))
        )
        context = sealapi.SEALContext(found, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise ValueError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
        return context, [prime.value() for prime in found.coeff_modulus()]

    @classmethod
    def read(cls, content: dict) -> "Parameters":
        """The inverse of `dataclasses.asdict`, after a way through JSON."""
        return cls(**content | {"coeff_bits": tuple(content["coeff_bits"])})


@cache
def seal_version() -> str:
    """The SEAL that runs here, as it signs what it saves: the byte layout is bound to it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain"
        sealapi.Plaintext().save(str(path))
        header = path.read_bytes()[:16]
    return f"SEAL {header[3]}.{header[4]}, TenSEAL {tenseal.__version__}"


def new_session_key() -> bytes:
    """32 random bytes that both sides must hold before they talk (TLS or a visit brings them)."""
    return secrets.token_bytes(32)


def pack_message(session_key: bytes, kind: str, body=b"", **about) -> bytes:
    """One message: a fixed prefix, a JSON header, the body, and an HMAC-SHA256 of all of it.

    Args:
        session_key: that of both sides.
        kind: offer, keys, ready, request, answer or refusal.
        body: bytes, or an array of "<u4" or "<f8" whose shape goes into the header.
        **about: further header fields, plain JSON; by convention `form`, `parameters` (an id),
            `key` (an id), `nonce`, `part`, `parts`.
    """
    if isinstance(body, np.ndarray):
        about |= {"shape": list(body.shape), "type": body.dtype.str}
        body = np.ascontiguousarray(body).data.cast("B")
    header = json.dumps({"kind": kind, "seal": seal_version(), **about}).encode()
    parts = _FIXED.pack(MAGIC, FORMAT, len(header), len(body)), header, body
    tag = hmac.new(session_key, digestmod="sha256")
    for part in parts:
        tag.update(part)
    return b"".join((*parts, tag.digest()))


def unpack_message(session_key: bytes, message: bytes, kind: str | tuple, **expected) -> tuple:
    """Header and body of a message, after every check.

    Args:
        session_key: that of both sides.
        message: whatever arrived.
        kind: what must have arrived, or a tuple of what may.
        **expected: header fields that must have this value.

    Returns:
        The header as a dict, and the body: an array where the header has a shape, else bytes.

    Raises:
        Refused: the other side refused.
        MessageError: it is truncated, altered, of another session, SEAL, key or context.
    """
    if len(message) < _FIXED.size + _TAG:
        raise MessageError(f"the message is truncated: {len(message)} bytes")
    magic, version, header_size, body_size = _FIXED.unpack_from(message)
    if magic != MAGIC or version != FORMAT:
        raise MessageError(f"this is no message of this protocol (version {FORMAT})")
    size = _FIXED.size + header_size + body_size + _TAG
    if len(message) != size:
        raise MessageError(
            f"the message has {len(message)} bytes and claims {size}: truncated or altered"
        )
    view = memoryview(message)
    if not hmac.compare_digest(hmac.digest(session_key, view[:-_TAG], "sha256"), view[-_TAG:]):
        raise MessageError("the message was altered on its way, or is of another session key")
    try:
        header = json.loads(bytes(view[_FIXED.size : _FIXED.size + header_size]))
        body = view[_FIXED.size + header_size : -_TAG]
        if header["seal"] != seal_version():
            raise MessageError(
                f"the message is of {header['seal']}, this side runs {seal_version()}, and the "
                "byte layout is bound to it: install the same tenseal on both sides"
            )
        if header["kind"] == "refusal":
            raise Refused(str(header["why"]))
        if header["kind"] not in (kind if isinstance(kind, tuple) else (kind,)):
            raise MessageError(_mismatch("kind", header["kind"], kind))
        for name, value in expected.items():
            if header.get(name) != value:
                raise MessageError(_mismatch(name, header.get(name), value))
        if "shape" in header:
            if header["type"] not in ("<u4", "<f8") or min(header["shape"], default=0) < 0:
                raise MessageError("the message has no such type or shape")
            if math.prod(header["shape"]) * np.dtype(header["type"]).itemsize != len(body):
                raise MessageError("the message's body does not fill its shape")
            body = np.frombuffer(body, header["type"]).reshape(header["shape"])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
        raise MessageError("the message's header is malformed") from None
    return header, body


_HINTS = {
    "key": "was made under another key: each client decrypts only what its own key encrypted",
    "parameters": "belongs to another context: both sides must use the parameters of one offer",
    "nonce": "answers another request",
    "form": "is of another form of evaluation: connect with this server's own offer",
    "kind": "is of another kind",
}


def _mismatch(name: str, found, wanted) -> str:
    return f"the message {_HINTS.get(name, 'does not fit')} ({name} {found!r}, not {wanted!r})"


def check_images(images, image_size: int, most: int) -> np.ndarray:
    """(N, H, W) float64 of what is about to be encrypted.

    Args:
        images: (N, 1, H, W) or (N, H, W).
        image_size: H and W in pixels.
        most: how many a request may hold.

    Raises:
        ValueError: another shape, too many or none, or values outside [0, 1]: the bit budget and
            the network's accuracy hold for that range only.
    """
    images = np.asarray(images, float)
    if images.ndim not in (3, 4) or images.size != len(images) * image_size**2 or not len(images):
        raise ValueError(
            f"images must be (N, 1, {image_size}, {image_size}), not {tuple(images.shape)}"
        )
    if len(images) > most:
        raise ValueError(f"a request takes {most} images, not {len(images)}; send them in parts")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]: beyond it a result "
            "could overflow unseen"
        )
    return images.reshape(-1, image_size, image_size)


def check_known_answer(found: np.ndarray, known: np.ndarray, tolerance: float) -> None:
    """Compares the answer to the known image with what the server's offer promised.

    Args:
        found: (classes,) decrypted logits of the known image.
        known: (classes,) as offered.
        tolerance: largest difference that decryption noise explains.

    Raises:
        MessageError: it differs: a wrong key, other weights, an overflow or another byte layout,
            which no HMAC can notice.
    """
    error = np.abs(found - known).max()
    if not error <= tolerance:
        raise MessageError(
            f"the known-answer image came back {error:.3g} off (noise explains {tolerance:.3g}): "
            "the computation is wrong, or decrypted under a wrong key; do not use these answers"
        )


class Offer:
    """What a server says about itself, read from its signed bytes.

    Args:
        session_key: that of both sides.
        message: as `write_offer` wrote it.
        form: the form that the reader speaks; any if None.

    Raises:
        MessageError: the offer is not of this session or form.
    """

    def __init__(self, session_key: bytes, message: bytes, form: str | None = None):
        header, body = unpack_message(session_key, message, "offer")
        self.form, self.image_size = header["form"], header["image_size"]
        if form is not None and self.form != form:
            raise MessageError(f"the offer is of form {self.form!r}, not {form!r}")
        self.parameters = Parameters.read(header["parameters"])
        self.scale, self.tolerance = header["scale"], header["tolerance"]
        self.layout = header["layout"]
        pixels = self.image_size**2
        self.known_image = body[:pixels].reshape(self.image_size, self.image_size)
        self.known_logits = body[pixels:]


class Client:
    """What the clients of all forms hold: an offer, the session key, and an id of their keys.

    Args:
        offer: the server's, as bytes.
        session_key: of the HMAC, shared with the server.

    Raises:
        MessageError: the offer is not of this session or form.
    """

    form: str

    def __init__(self, offer: bytes, session_key: bytes):
        self.offer, self.session_key = Offer(session_key, offer, self.form), session_key
        self.parameters = self.offer.parameters
        self.key_id, self.nonce = secrets.token_hex(8), ""

    def about(self) -> dict:
        """The header fields of all its messages."""
        return dict(form=self.form, parameters=self.parameters.id, key=self.key_id)


def answer_under_keys(server, message: bytes) -> bytes:
    """The answer to a client's evaluation keys ("ready"), or to its request under them.

    Args:
        server: with `read_keys(header, body)`, which makes of keys what `evaluate(keys, header,
            body)` computes with, and `keys`: those of the last client by its id.
        message: whatever arrived.

    Raises:
        MessageError: it is not of this server's, or comes before the keys.
    """
    header, body = unpack_message(
        server.session_key, message, ("keys", "request"), form=server.form,
        parameters=server.parameters.id,
    )  # fmt: skip
    about = dict(form=server.form, parameters=server.parameters.id, key=header["key"])
    if header["kind"] == "keys":
        server.keys = {header["key"]: server.read_keys(header, body)}
        return pack_message(server.session_key, "ready", **about)
    if header["key"] not in server.keys:
        raise MessageError("no evaluation keys of this client: send client.keys() first")
    found = server.evaluate(server.keys[header["key"]], header, body)
    return pack_message(server.session_key, "answer", found, nonce=header["nonce"], **about)


def write_offer(
    session_key: bytes, form: str, network, parameters: Parameters, scale: float, known, tolerance,
    **layout,
) -> bytes:  # fmt: skip
    """A server's public description: what to encrypt under, how to read answers, a known one.

    Args:
        session_key: that of both sides.
        form: "tensor", "lanes" or "taps".
        network: the `SquareNetwork` that answers, for the known answer.
        parameters: of the encryption.
        scale: decrypted numbers are divided by it.
        known: one image, (H, W) in [0, 1].
        tolerance: how far its decrypted logits may be off.
        **layout: what this form needs besides, plain JSON.
    """
    known = np.asarray(known, float).reshape(network.image_size, network.image_size)
    body = np.concatenate([known.ravel(), network.logits(known[None])[0]])
    return pack_message(
        session_key, "offer", body, form=form, image_size=network.image_size,
        parameters=asdict(parameters), scale=scale, tolerance=float(tolerance), layout=layout,
    )  # fmt: skip


def why_refused(work: Callable, *args, **settings) -> str | None:
    """The reason for which a call is refused (a ValueError), or None where it goes through.

    Args:
        work: what to call.
        *args: its arguments.
        **settings: its keyword arguments.
    """
    try:
        work(*args, **settings)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return None


def peak_bytes() -> int | None:
    """The most memory this process ever held, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where `ru_maxrss` would count the parent's memory as well
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _serve(connection, server) -> None:
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        start = time.process_time()
        try:
            reply = server.answer(message)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            reply = pack_message(server.session_key, "refusal", why=why)
        connection.send(("spent", time.process_time() - start, peak_bytes()))
        connection.send_bytes(reply)


class Asking:
    """A server in another process, as a function from request bytes to answer bytes.

    `seconds` is the server's CPU time of each answer, `peak` its largest memory in bytes, `sent`
    and `received` count bytes.
    """

    def __init__(self, connection):
        self._connection, self.seconds, self.peak = connection, [], None
        self.sent = self.received = 0

    def __call__(self, message: bytes) -> bytes:
        """The server's reply to one message.

        Raises:
            RuntimeError: its process has ended.
        """
        try:
            self._connection.send_bytes(message)
            _, spent, self.peak = self._connection.recv()
            reply = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise RuntimeError("the server's process has ended; start it again") from None
        self.seconds.append(spent)
        self.sent, self.received = self.sent + len(message), self.received + len(reply)
        return reply


@contextmanager
def in_process(server) -> Callable[[bytes], bytes]:
    """Runs a server in a process of its own, which is started afresh and inherits no memory.

    Args:
        server: anything with `answer(message)` and `session_key`; it travels by pickle.

    Yields:
        An `Asking`.
    """
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=_serve, args=(theirs, server), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Asking(ours)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
