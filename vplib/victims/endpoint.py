"""The victim as an endpoint: what it answers, what it counts, when it stops answering.

An `Endpoint` wraps a model in this process; `serve` puts the same endpoint behind HTTP, and a
`Client` is the same callable again, so that an attack runs on either unchanged. An HTTP request is
JSON, {"shape": [N, C, H, W], "data": base64 of little-endian float32}; an answer has the same form.
"""

import base64
import binascii
import hashlib
import http.client
import json
import math
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vplib import experiment

ANSWERS = ("probabilities", "labels")
MAX_BYTES = 2**24  # of one HTTP request; the client sends larger batches in parts
_TYPES = {torch.float32: "<f4", torch.int64: "<i8"}


class BudgetSpent(RuntimeError):
    """The endpoint would have to answer more queries than it allows."""


class ServiceError(RuntimeError):
    """The service over HTTP is gone, or broke."""


class Endpoint:
    """A model as others see it: a callable from images to answers that counts what it is asked."""

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        answers: str = "probabilities",
        top_k: int | None = None,
        decimals: int | None = None,
        budget: int | None = None,
        shape: tuple[int, int, int] | None = None,
    ):
        """Wraps a model; nothing is asked yet.

        Args:
            predict: from (N, C, H, W) images to (N, classes) probabilities.
            answers: "probabilities" or "labels".
            top_k: answer with the k largest probabilities and zeros elsewhere.
            decimals: answer with probabilities rounded to so many decimals, the label kept.
            budget: how many images it answers for at most; repeats count. None: no limit.
            shape: (C, H, W) that images must have; None takes what the model takes.

        Raises:
            ValueError: a setting is out of range, or labels are to be masked.
        """
        if answers not in ANSWERS:
            raise ValueError(f"unknown answers {answers!r}; {experiment.nearest(answers, ANSWERS)}")
        if answers == "labels" and (top_k is not None or decimals is not None):
            raise ValueError("labels cannot be masked: drop top_k and decimals")
        for name, value, least in (("top_k", top_k, 1), ("decimals", decimals, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if budget is not None and budget < 0:
            raise ValueError(f"budget must be 0 or more, not {budget}")
        self.answers, self.budget, self.shape, self.queries = answers, budget, shape, 0
        self._predict, self._top_k, self._decimals = predict, top_k, decimals
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """The answers to some images; each image is one query.

        Args:
            images: (N, C, H, W) float32 in [0, 1].

        Returns:
            (N, classes) probabilities, masked as the endpoint masks, or (N,) labels.

        Raises:
            ValueError: the images are not as above; they cost nothing.
            BudgetSpent: they would exceed the budget: none is answered, none is counted.
        """
        self._check(images)
        with self._lock:  # counted before it is answered, so that two callers cannot overdraw
            if self.budget is not None and self.queries + len(images) > self.budget:
                raise BudgetSpent(
                    f"{self.queries} of {self.budget} queries are spent; "
                    f"{len(images)} more would exceed the budget"
                )
            self.queries += len(images)
        try:
            found = self._predict(images).detach()
        except BaseException:
            with self._lock:
                self.queries -= len(images)  # no answer, no charge
            raise
        if self.answers == "labels":
            return found.argmax(-1)
        if self._top_k is not None:
            found = top_k(found, self._top_k)
        return found if self._decimals is None else rounded(found, self._decimals)

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
            kind = type(images).__name__
            if isinstance(images, Tensor):
                kind = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ValueError(f"images must be float32 of shape (N, C, H, W), not {kind}")
        if self.shape is not None and tuple(images.shape[1:]) != tuple(self.shape):
            raise ValueError(
                f"images must be of shape {tuple(self.shape)}, not {tuple(images.shape[1:])}"
            )
        if not images.numel():
            raise ValueError("there is no image")
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ValueError(f"images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]")


def keep_label(masked: Tensor, probabilities: Tensor) -> Tensor:
    """Masked answers in which the label is the largest entry again, and alone at the top.

    Args:
        masked: (..., classes), changed as little as a float allows where another class has
            reached the label's value.
        probabilities: (..., classes) whose argmax is the label.
    """
    label = probabilities.argmax(-1, keepdim=True)
    top = masked.gather(-1, label)
    below = torch.nextafter(top, torch.full_like(top, -math.inf))
    return masked.minimum(below).scatter(-1, label, top)


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """The k largest probabilities of each answer, unchanged; zeros elsewhere.

    Args:
        probabilities: (..., classes).
        k: how many to keep; all, if there are fewer.

    Raises:
        ValueError: k is below 1.

    Source:
        Shokri et al., Membership inference attacks against machine learning models, S&P 2017,
        section VIII.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    label = probabilities.argmax(-1, keepdim=True)  # of equal ones topk may keep another
    first = probabilities.scatter(-1, label, math.inf)
    index = first.topk(min(k, probabilities.shape[-1]), dim=-1).indices
    return torch.zeros_like(probabilities).scatter(-1, index, probabilities.gather(-1, index))


def rounded(probabilities: Tensor, decimals: int) -> Tensor:
    """Each probability rounded; where another class ties with the label, it loses one unit.

    Args:
        probabilities: (..., classes).
        decimals: 0 or more digits after the point.

    Raises:
        ValueError: `decimals` is negative.
    """
    if decimals < 0:
        raise ValueError(f"decimals must be 0 or more, not {decimals}")
    units = (probabilities.double() * 10**decimals).round()
    label = probabilities.argmax(-1, keepdim=True)
    top = units.gather(-1, label).clamp_min(1)  # all may round to zero
    units = units.minimum(top - 1).scatter(-1, label, top)
    found = (units / 10**decimals).to(probabilities.dtype)
    return keep_label(found, probabilities)  # of many decimals a float has not all


class Service:
    """An endpoint behind HTTP on this machine, until it is closed; also a context manager."""

    def __init__(self, server, thread, listening):
        """Made by `serve`."""
        self._server, self._thread = server, thread
        self.url = "http://{}:{}".format(*listening.getsockname())

    def close(self) -> None:
        """Stops the service; requests that are being answered are finished first."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self):
        """The service itself."""
        return self

    def __exit__(self, *_):
        """Closes it."""
        self.close()


def serve(endpoint: Endpoint, port: int = 0, max_bytes: int = MAX_BYTES) -> Service:
    """Puts an endpoint behind HTTP, for this machine only (127.0.0.1), in a thread of its own.

    POST /predict answers; GET / says what is answered and how many queries were counted. Refusals
    have a status and one sentence: 400 no JSON of this form, 413 too long, 422 wrong images,
    429 budget spent, 500 the model failed (which is not told).

    Args:
        endpoint: what answers.
        port: where; 0 takes a free one.
        max_bytes: the longest request body.

    Returns:
        The running service, with its `url`.

    Raises:
        ImportError: FastAPI or uvicorn is missing; the message says how to install them.
        OSError: the port is taken.
    """
    try:
        import uvicorn
        from fastapi import FastAPI, Request
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
    except ImportError as error:
        raise ImportError(f"{error}; api.serve needs: pip install 'vplib[serve]'") from None
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def refuse(status: int, why: str) -> JSONResponse:
        return JSONResponse({"error": why}, status)

    @app.get("/")
    async def about():
        told = {name: getattr(endpoint, name) for name in ("answers", "queries", "budget")}
        return told | {"max_bytes": max_bytes}

    @app.post("/predict")
    async def predict(request: Request):
        body, length = bytearray(), 0
        async for part in request.stream():
            length += len(part)
            if length <= max_bytes:
                body += part
            elif length > 16 * max_bytes:  # up to there read and dropped: who sends, then listens
                break
        if length > max_bytes:
            return refuse(413, f"a request may have {max_bytes} bytes; send fewer images")
        try:
            images = _decoded(bytes(body))
        except (ValueError, TypeError, KeyError, RecursionError):
            return refuse(400, 'send JSON: {"shape": [N, C, H, W], "data": base64 of float32}')
        try:
            answer = await run_in_threadpool(endpoint, images)
        except BudgetSpent as error:
            return refuse(429, str(error))
        except ValueError as error:
            return refuse(422, str(error))
        except Exception:
            return refuse(500, "the model failed on these images; nothing was counted")
        return _encoded(answer)

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError:
        listening.close()
        raise
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    return Service(server, thread, listening)


class Client:
    """A service over HTTP as the same callable: an attack on an `Endpoint` runs on it unchanged."""

    def __init__(self, url: str, save: str | Path | None = None, timeout: float = 60.0):
        """Asks the service what it is, which costs no query.

        Args:
            url: of the service.
            save: a file that keeps every answer as soon as it is there. An attack that was
                interrupted and is started again with equal arguments gets the answers that were
                paid for from the file, each of them once, and only asks for the rest.
            timeout: seconds until a service counts as gone.

        Raises:
            ServiceError: nothing answers there.
            ValueError: `save` is some other file.
        """
        self.url, self.timeout = url.rstrip("/"), timeout
        self._lock, self._paid = threading.Lock(), defaultdict(deque)
        self._save = None if save is None else Path(save)
        self.reused = 0  # answers that came from the file
        about = self._ask("/")
        if not {"answers", "max_bytes"} <= set(about):
            raise ServiceError(f"{self.url} answers, but is no endpoint of api.serve")
        self.answers, self._max_bytes = about["answers"], about["max_bytes"]
        if self._save is not None:
            self._load()

    @property
    def queries(self) -> int:
        """How many queries the service has counted, whoever asked."""
        return self._ask("/")["queries"]

    def __call__(self, images: Tensor) -> Tensor:
        """The answers to some images, as the endpoint behind the service gives them.

        Raises:
            ValueError: the service refuses the images; they cost nothing.
            BudgetSpent: they would exceed its budget.
            ServiceError: it is gone or broke.
        """
        one = max(1, images[:1].numel() * 16 // 3 + 200)  # bytes of an image on the wire, and more
        parts = images.split(max(1, self._max_bytes // one))
        return torch.cat([self._part(part) for part in parts]).to(images.device)

    def _part(self, images: Tensor) -> Tensor:
        request = json.dumps(_encoded(images)).encode()
        digest = hashlib.sha256(request).hexdigest()
        with self._lock:
            if self._paid[digest]:
                self.reused += len(images)
                return _decoded(self._paid[digest].popleft())
        answer = self._ask("/predict", request)
        if self._save is not None:
            with self._lock, closing(self._open()) as file, file:  # a transaction: all or nothing
                file.execute("INSERT INTO answers VALUES (?, ?)", (digest, json.dumps(answer)))
        return _decoded(json.dumps(answer).encode())

    def _ask(self, path: str, body: bytes | None = None) -> dict:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            kinds = {400: ValueError, 413: ValueError, 422: ValueError, 429: BudgetSpent}
            try:
                why = json.loads(error.read())["error"]
            except (ValueError, KeyError, TypeError, OSError):
                why = "no reason given"
            kind = kinds.get(error.code, ServiceError)
            raise kind(f"{self.url} refused ({error.code}): {why}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            kept = f"; answers so far are in {self._save}" if self._save else ""
            raise ServiceError(
                f"{self.url} does not answer ({error or type(error).__name__}){kept}; "
                "start the service and the attack again"
            ) from None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._save, timeout=60)

    def _load(self) -> None:
        try:
            with closing(self._open()) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT, answer TEXT)")
                rows = file.execute("SELECT request, answer FROM answers ORDER BY rowid")
                for digest, answer in rows:
                    self._paid[digest].append(answer.encode())
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self._save} holds no saved answers ({error}); name another file"
            ) from None


def _encoded(values: Tensor) -> dict:
    """Numbers as JSON: their type, their shape, and base64 of their little-endian bytes."""
    kind = _TYPES.get(values.dtype)
    if kind is None:
        raise ValueError(f"only float32 and int64 travel, not {values.dtype}")
    data = np.ascontiguousarray(values.detach().cpu().numpy(), dtype=kind)
    text = base64.b64encode(data).decode()
    return {"type": kind, "shape": list(values.shape), "data": text}


def _decoded(body: bytes) -> Tensor:
    """The inverse of `_encoded`, of whatever a stranger may have sent.

    Raises:
        ValueError, TypeError, KeyError: it is no such JSON.
    """
    content = json.loads(body)
    kind, shape = content.get("type", "<f4") if isinstance(content, dict) else "", None
    if kind not in _TYPES.values():
        raise ValueError("no such type")
    shape = content["shape"]
    if not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise ValueError("no such shape")
    try:
        data = base64.b64decode(content["data"], validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None
    if len(data) != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("the data do not fill the shape")
    values = np.frombuffer(data, dtype=kind).reshape(shape)
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True))
