"""A server and its clients, whatever the form of the arithmetic, and a server's own process.

A form is two classes. The server's holds `network`, `parameters`, `scale`, `layout` (what clients
need besides, plain JSON), `parts` (requests a batch) and `keyed`, and has `tolerance(logits)`,
`read_keys(body)` where it is keyed, and `evaluate(body, part, keys)`. The client's holds the secret
key, `batch_size` and `parts`, and has `keys()`, `encrypt(images)` and `decrypt(bodies, scale)`. All
else is here, once.
"""

import multiprocessing
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache

import numpy as np

from vplib.defenses.encrypted_inference import lanes, messages, taps, tensors
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference.messages import MessageError
from vplib.defenses.encrypted_inference.seal import Parameters, version

FORMS = {form.name: form for form in (tensors.Tensors, lanes.Lanes, taps.Taps)}
SPENT = struct.Struct("<d")  # before each reply of a server's process: its CPU seconds


class Server:
    """Answers requests in one form; holds weights and the session key, and never a secret key.

    Args:
        form: the arithmetic, with the network.
        session_key: of the HMAC, shared with the client.
        known: an image of the server's, (H, W) in [0, 1], whose answer the offer promises.
    """

    def __init__(self, form, session_key: bytes, known: np.ndarray):
        self.form, self.session_key, self.keys = form, session_key, {}
        self.known = check_images(np.asarray(known)[None], form.network.image_size, 1)

    def __getstate__(self):
        """What travels to another process: no object of SEAL's, and keys are sent there anew."""
        return self.__dict__ | {"keys": {}}

    def offer(self) -> bytes:
        """The server's public description: what to encrypt under, how to read answers."""
        form, logits = self.form, self.form.network.logits(self.known)[0]
        about = dict(form=form.name, image_size=form.network.image_size, scale=float(form.scale))
        about |= dict(parameters=asdict(form.parameters), layout=form.layout)
        about |= dict(tolerance=float(form.tolerance(logits, self.known)))
        about |= dict(bound=form.network.logit_bound())
        body = np.concatenate([self.known.ravel(), logits])
        return messages.pack_message(self.session_key, "offer", body, **about)

    def answer(self, message: bytes) -> bytes:
        """The answer to a client's evaluation keys ("ready"), or to its request.

        Raises:
            MessageError: it is not of this server's, nonsense, or comes before the keys.
        """
        form = self.form
        about = dict(form=form.name, parameters=form.parameters.id)
        header, body = messages.unpack_message(
            self.session_key, message, ("keys", "request"), **about
        )
        about |= {name: header.get(name) for name in ("key", "nonce", "part")}
        named = ("key",) if header["kind"] == "keys" else ("key", "nonce")
        if not all(isinstance(about[name], str) for name in named):
            raise MessageError(f"a message of this kind must name its {' and its '.join(named)}")
        client = about["key"]
        if header["kind"] == "keys":
            with _as_message_error("these are no evaluation keys of this context"):
                self.keys = {client: form.read_keys(body)}
            return messages.pack_message(self.session_key, "ready", **about)
        if form.keyed and client not in self.keys:
            raise MessageError("no evaluation keys of this client: send client.keys() first")
        if type(part := about["part"]) is not int or not 0 <= part < form.parts:
            raise MessageError(f"part {part!r} is none of the {form.parts} of a request")
        with _as_message_error("this is no request of this form"):
            found = form.evaluate(body, part, self.keys.get(client))
        return messages.pack_message(self.session_key, "answer", found, **about)


class Client:
    """Holds the secret key; encrypts images into requests and decrypts the answers.

    Args:
        offer: the server's, as bytes.
        session_key: of the HMAC, shared with the server.

    Raises:
        MessageError: the offer is not of this session, of a form that is not known here, or says
            what does not fit together.
    """

    def __init__(self, offer: bytes, session_key: bytes):
        header, body = messages.unpack_message(session_key, offer, "offer")
        with _as_message_error("this is no offer of a server"):
            self.form, self.image_size = header["form"], (size := header["image_size"])
            self.scale, self.tolerance = header["scale"], header["tolerance"]
            self.bound = 1.01 * header["bound"] + self.tolerance  # and what noise may add
            content, pixels = header["parameters"], size**2
            self.parameters = Parameters(**content | {"coeff_bits": tuple(content["coeff_bits"])})
            self.known = check_images(body[:pixels].reshape(1, size, size), size, 1)
            self.known_logits = body[pixels:]
            self._check_offer(form := FORMS[self.form], header["layout"])
            self.secret = form.Secret(self.parameters, size, header["layout"])
        self.session_key, self.batch_size = session_key, self.secret.batch_size
        self.key_id, self.nonce, self._count = secrets.token_hex(8), secrets.token_hex(16), 0

    def _check_offer(self, form: type, layout: dict) -> None:
        """Refuses numbers that do not fit each other, before anything is made by them."""
        scales, classes = [self.scale, self.tolerance, self.bound], len(self.known_logits)
        if not classes or layout.get("classes", classes) != classes:
            raise ValueError(f"{classes} logits are promised, for the layout {layout}")
        if not np.isfinite([*scales, *self.known_logits]).all() or min(scales) <= 0:
            raise ValueError("scale, tolerance and bound must be above 0, and the logits finite")
        if np.abs(self.known_logits).max() > self.bound:
            raise ValueError("the logits that are promised exceed the network's own bound")
        bits = self.parameters.scale_bits  # lanes take any
        ours = form.parameters if form.keyed else replace(form.parameters, scale_bits=bits)
        if self.parameters != ours or not 1 <= bits <= 40:
            raise ValueError(f"form {self.form} takes other parameters, not {self.parameters}")

    def about(self) -> dict:
        """The header fields of all its messages."""
        return dict(form=self.form, parameters=self.parameters.id, key=self.key_id)

    def keys(self) -> bytes:
        """The evaluation keys, without the secret one; for a form that needs none, nothing."""
        return messages.pack_message(self.session_key, "keys", self.secret.keys(), **self.about())

    def encrypt(self, images) -> Iterator[bytes]:
        """The requests for up to `batch_size` images: one, or one a lane.

        Args:
            images: (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: the images are not as above.
        """
        images = check_images(images, self.image_size, self.batch_size)
        self._count, self.nonce = len(images), secrets.token_hex(16)
        if self.batch_size > 1:  # the known-answer image has a slot of its own
            images = np.concatenate([images, self.known])
        return self._requests(images, self.about() | dict(nonce=self.nonce))

    def _requests(self, images, about):
        for part, body in enumerate(self.secret.encrypt(images)):
            yield messages.pack_message(self.session_key, "request", body, part=part, **about)

    def decrypt(self, answers: Iterable[bytes]) -> np.ndarray:
        """(N, classes) logits of the images encrypted last; once, for what is replayed is refused.

        Args:
            answers: all of them, in any order.

        Raises:
            MessageError: an answer is missing, double, altered, not to these requests, or no
                ciphertext; or the known-answer image came back wrong, or logits that the network
                gives to no picture.
        """
        parts, about = {}, self.about() | dict(nonce=self.nonce)
        for message in answers:
            header, body = messages.unpack_message(self.session_key, message, "answer", **about)
            part = header.get("part")
            if type(part) is not int or part in parts or not 0 <= part < self.secret.parts:
                raise MessageError(f"the answer of part {part!r} came twice, or was not asked for")
            parts[part] = body
        if missing := sorted(set(range(self.secret.parts)) - set(parts)):
            raise MessageError(f"the answers of parts {missing} are missing")
        self.nonce = secrets.token_hex(16)
        with _as_message_error("the answer is no ciphertext of these parameters"):
            found = self.secret.decrypt([parts[i] for i in sorted(parts)], len(self.known_logits))
            found = found[: self._count + (self.batch_size > 1)] / self.scale
            if (num_classes := found.shape[1]) != len(self.known_logits):
                raise MessageError(f"{num_classes} classes came back, not {len(self.known_logits)}")
        if self.batch_size > 1:
            self._check_known(found[-1])
            found = found[:-1]
        if not (np.abs(found) <= self.bound).all():
            raise MessageError(
                f"logits up to {np.abs(found).max():.3g} came back, but no picture has any beyond "
                f"{self.bound:.3g}: the request or the answer was altered"
            )
        return found

    def check(self, ask: Callable[[bytes], bytes]) -> None:
        """Asks the known-answer image as a query of its own, where a request has one slot only.

        Args:
            ask: from request bytes to answer bytes.

        Raises:
            MessageError: the answer is wrong.
        """
        if self.batch_size == 1:
            self._check_known(self.decrypt(map(ask, self.encrypt(self.known)))[0])

    def _check_known(self, found: np.ndarray) -> None:
        error = np.abs(found - self.known_logits).max()
        if not error <= self.tolerance:  # no HMAC can notice: the server signs its own mistake
            raise MessageError(
                f"the known-answer image came back {error:.3g} off (noise explains "
                f"{self.tolerance:.3g}): the computation is wrong, or decrypted under a wrong key; "
                "do not use these answers"
            )


@contextmanager
def _as_message_error(what: str):
    """Whatever SEAL, TenSEAL or numpy make of a stranger's bytes is one kind of error."""
    try:
        yield
    except MessageError:
        raise
    except Exception as error:  # ZeroDivisionError and MemoryError, too, are a stranger's doing
        raise MessageError(f"{what}: {error}") from None


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
    images, square = np.asarray(images, float), (image_size, image_size)
    if images.shape[1:] not in ((1, *square), square) or not len(images):
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
    return images.reshape(-1, *square)


def start(form: type, network, session_key: bytes, known: np.ndarray, **settings) -> Server:
    """A server of this form or, where it does not work on this machine, of the plain form.

    Args:
        form: `Lanes`, `Taps` or `Tensors`.
        network: in floats.
        session_key: of the HMAC.
        known: the known-answer image, (H, W) in [0, 1].
        **settings: for the form.

    Raises:
        OverBudget: a result could overflow.
    """
    why = None if form is tensors.Tensors else why_not(form)
    if why:
        print(f"falling back to the plain form, which takes minutes: {why}")
        form, settings = tensors.Tensors, {}
    return Server(form(network, **settings), session_key, known)


@cache
def why_not(form: type) -> str | None:
    """Why a form cannot be used on this machine, or None: a tiny network, end to end.

    Args:
        form: `Lanes` or `Taps`; their byte layout is that of one version of SEAL.
    """
    key, image = messages.new_session_key(), np.random.default_rng(0).random((1, 5, 5))
    try:
        server = Server(form(networks.random_network(image_size=5, kernel=3)), key, image[0])
        client = Client(server.offer(), key)
        if server.form.keyed:
            server.answer(client.keys())
        client.check(server.answer)
        client.decrypt(map(server.answer, client.encrypt(image)))
    except Exception as error:  # whatever SEAL's other layout makes of it
        return f"{type(error).__name__}: {error} ({version()})"
    return None


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


def _serve(connection, server: Server) -> None:
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        begin = time.process_time()
        try:
            reply = server.answer(message)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            reply = messages.pack_message(server.session_key, "refusal", why=why)
        connection.send_bytes(SPENT.pack(time.process_time() - begin) + reply)


class Asking:
    """A server in another process, as a function from request bytes to answer bytes.

    What comes back is bytes and is read as bytes: to unpickle it would let a server run code where
    the secret key is. `seconds` is the server's CPU time of each answer, in its own words; `sent`
    and `received` count bytes.
    """

    def __init__(self, connection):
        self._connection, self.seconds = connection, []
        self.sent = self.received = 0

    def __call__(self, message: bytes) -> bytes:
        """The server's reply to one message.

        Raises:
            RuntimeError: its process has ended.
            MessageError: the reply is too short to be one.
        """
        try:
            self._connection.send_bytes(message)
            found = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise RuntimeError("the server's process has ended; start it again") from None
        if len(found) < SPENT.size:
            raise MessageError(f"the server replied with {len(found)} bytes, which is no reply")
        self.seconds.append(SPENT.unpack_from(found)[0])
        reply = found[SPENT.size :]
        self.sent, self.received = self.sent + len(message), self.received + len(reply)
        return reply


@contextmanager
def in_process(server: Server) -> Iterator[Asking]:
    """Runs a server in a process of its own, which is started afresh and inherits no memory.

    Args:
        server: it travels to its process by pickle; nothing travels back that way.

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
