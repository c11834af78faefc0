"""What client and server exchange: bytes, each message under an HMAC."""

import hmac
import json
import math
import secrets
import struct

import numpy as np

from vplib.defenses.encrypted_inference import seal

MAGIC, _FIXED, _TAG = b"VPHE2", struct.Struct("<5sIQ"), 32


class MessageError(ValueError):
    """A message is not what it should be: truncated, altered, or meant for someone else."""


class Refused(MessageError):
    """The other side refused; its reason is the text."""


def new_session_key() -> bytes:
    """32 random bytes that both sides must hold before they talk (TLS or a visit brings them)."""
    return secrets.token_bytes(32)


def pack_message(session_key: bytes, kind: str, body=b"", **about) -> bytes:
    """One message: a fixed prefix, a JSON header, the body, and an HMAC-SHA256 of all of it.

    Args:
        session_key: that of both sides.
        kind: offer, keys, ready, request, answer or refusal.
        body: bytes, a list of bytes whose sizes go into the header, or an array of "<u4" or "<f8"
            whose shape does.
        **about: further header fields, plain JSON; by convention `form`, `parameters` (an id),
            `key` (an id), `nonce`, `part`.
    """
    if isinstance(body, np.ndarray):
        about |= {"shape": list(body.shape), "type": body.dtype.str}
        body = np.ascontiguousarray(body).data.cast("B")
    elif isinstance(body, list):
        about, body = about | {"sizes": [len(part) for part in body]}, b"".join(body)
    header = json.dumps({"kind": kind, "seal": seal.version(), **about}).encode()
    parts = _FIXED.pack(MAGIC, len(header), len(body)), header, body
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
        The header as a dict, and the body as it was packed.

    Raises:
        Refused: the other side refused.
        MessageError: it is truncated, altered, of another session, SEAL, key or context.
    """
    if len(message) < _FIXED.size + _TAG:
        raise MessageError(f"the message is truncated: {len(message)} bytes")
    magic, header_size, body_size = _FIXED.unpack_from(message)
    if magic != MAGIC:
        raise MessageError(f"this is no message of this protocol ({MAGIC.decode()})")
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
        _check_header(header, (kind,) if isinstance(kind, str) else kind, expected)
        return header, _body(header, view[_FIXED.size + header_size : -_TAG])
    except MessageError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
        raise MessageError("the message's header is malformed") from None


_HINTS = {
    "key": "was made under another key: each client decrypts only what its own key encrypted",
    "parameters": "belongs to another context: both sides must use the parameters of one offer",
    "nonce": "answers another request, or one that was answered already",
    "form": "is of another form of evaluation: connect with this server's own offer",
    "kind": "is of another kind",
}


def _check_header(header: dict, kinds: tuple, expected: dict) -> None:
    if header["seal"] != seal.version():
        raise MessageError(
            f"the message is of {header['seal']}, this side runs {seal.version()}, and the "
            "byte layout is bound to it: install the same tenseal on both sides"
        )
    if header["kind"] == "refusal":
        raise Refused(str(header["why"]))
    wanted = {name: (value,) for name, value in expected.items()} | {"kind": kinds}
    for name, values in wanted.items():
        if (found := header.get(name)) not in values:
            hint = _HINTS.get(name, "does not fit")
            raise MessageError(f"the message {hint} ({name} {found!r}, not {values[0]!r})")


def _body(header: dict, body: memoryview):
    if "sizes" in header:
        sizes = header["sizes"]
        if not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) != len(body):
            raise MessageError("the message does not say where its parts end, or they do not fill")
        ends = np.cumsum(sizes, dtype=int).tolist()
        return [bytes(body[end - n : end]) for end, n in zip(ends, sizes, strict=True)]
    if "shape" in header:
        if header["type"] not in ("<u4", "<f8") or min(header["shape"], default=0) < 0:
            raise MessageError("the message has no such type or shape")
        if math.prod(header["shape"]) * np.dtype(header["type"]).itemsize != len(body):
            raise MessageError("the message's body does not fill its shape")
        return np.frombuffer(body, header["type"]).reshape(header["shape"])
    return bytes(body)
