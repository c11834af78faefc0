"""An endpoint over HTTP: `serve` puts it behind a port, a `Client` is the same callable again.

An attack on an `Endpoint` runs on either unchanged. A request holds "images" as a safetensors
file, an answer "answers".
"""

import hashlib
import http.client
import json
import socket
import sqlite3
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from torch import Tensor

from vplib.victims.endpoint import BudgetSpent, Endpoint

MAX_BYTES = 2**24  # of one request; the client sends larger batches in parts
TIMEOUT = 60.0  # seconds until a service counts as gone
PATIENCE = 10.0  # seconds in which a request must have arrived, or its connection is closed
HEADER = 256  # at most, of a safetensors file that holds one tensor
FORM = "application/octet-stream"


class ServiceError(RuntimeError):
    """The service over HTTP is gone, or broke."""


def can_serve() -> bool:
    """Whether `serve` has what it needs: Starlette 1.6 or later, and uvicorn."""
    return all(map(find_spec, ("uvicorn", "starlette", "starlette.middleware.body_limit")))


@contextmanager
def serve(endpoint: Endpoint) -> Iterator[SimpleNamespace]:
    """An endpoint behind HTTP while inside: for this machine only (127.0.0.1), in its own thread.

    POST /predict answers; GET / says what is answered, how many queries were counted, and which
    service it is. Refusals have a status and one sentence: 400 no images in this form or no name of
    this machine as `Host`, 413 too long, 415 another `Content-Type` (both are what a web page that
    the user has open could send), 422 wrong images, of a shape that the model does not take too,
    429 budget spent, 500 the model failed. What the model itself says of a failure is never told.
    A connection on which no whole request arrives within `PATIENCE` is closed.

    Args:
        endpoint: what answers.

    Yields:
        The service, with its `url` on a free port. On leaving it ends, after the requests that
        are being answered.

    Raises:
        ImportError: Starlette or uvicorn is missing or too old.
    """
    if not can_serve():
        raise ImportError("http.serve needs Starlette and uvicorn: pip install 'vplib[serve]'")
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):  # uvicorn's own timeout begins after an answer only
        def connection_made(self, transport):
            super().connection_made(transport)
            self.waiting = self.loop.call_later(PATIENCE, transport.abort)

        def handle_events(self):
            super().handle_events()
            if self.cycle and not (self.cycle.more_body or self.cycle.response_complete):
                self.waiting.cancel()  # the request is whole, the answer is the model's to wait for

        def on_response_complete(self):
            self.waiting.cancel()
            self.waiting = self.loop.call_later(PATIENCE, self.transport.abort)
            super().on_response_complete()

    service = endpoint.id

    async def about(request):
        said = {k: getattr(endpoint, k) for k in ("answers", "queries", "budget")}
        return JSONResponse(said | {"service": service})

    async def predict(request):
        if request.headers.get("content-type") != FORM:
            return PlainTextResponse(f"send it with the header Content-Type: {FORM}", 415)
        body = await request.body()
        try:
            (images,) = safetensors.torch.load(body).values()
        except Exception:  # whatever a stranger may send
            return PlainTextResponse('send a safetensors file of one tensor, "images"', 400)
        try:
            answers = await run_in_threadpool(endpoint, images)
        except BudgetSpent as error:
            return PlainTextResponse(str(error), 429)
        except ValueError as error:  # never the model's own: the endpoint words them anew
            return PlainTextResponse(str(error), 422)
        except Exception:
            return PlainTextResponse("the model failed on these images; nothing was counted", 500)
        return Response(_packed("answers", answers), media_type=FORM)

    routes = [Route("/", about), Route("/predict", predict, methods=["POST"])]
    ours = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app = Starlette(routes=routes, middleware=[ours], max_body_size=MAX_BYTES)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
    quiet = dict(log_level="critical", access_log=False, http=Patient)
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """A service over HTTP as the same callable: an attack on an `Endpoint` runs on it unchanged.

    It connects directly: a proxy that the environment names is for no address here. Its `reused`
    counts the answers that came from the file.
    """

    def __init__(self, url: str, save: str | Path | None = None):
        """Asks the service what it is, which costs no query.

        Args:
            url: of the service.
            save: a file that keeps every answer as soon as it is there. An attack that was
                interrupted and is started again with equal arguments gets the answers that were
                paid for from the file, each of them once, and only asks for the rest. It belongs to
                one service: the same model, which answers in the same way.

        Raises:
            ServiceError: nothing answers there.
            ValueError: `save` is some other file, or another service's.
        """
        self.url, self._host, self._save = url, url.removeprefix("http://").rstrip("/"), save
        self._lock, self._paid, self.reused = threading.Lock(), defaultdict(deque), 0
        self._service = str(self._about("service")).encode()  # or nobody is there
        if save is not None:
            self._load()

    @property
    def queries(self) -> int:
        """How many queries the service has counted, whoever asked."""
        return self._about("queries")

    def _about(self, name: str):
        try:
            return json.loads(self._ask("/"))[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ServiceError(f"{self.url} answers, but is no endpoint of http.serve") from None

    def __call__(self, images: Tensor) -> Tensor:
        """The answers to some images, as the endpoint behind the service gives them.

        Raises:
            ValueError: the service refuses the images; they cost nothing.
            BudgetSpent: they would exceed its budget.
            ServiceError: it is gone or broke.
            OSError: an answer cannot be written to `save`.
        """
        one, most = max(1, images[:1].nbytes), MAX_BYTES - HEADER
        if one > most:
            raise ValueError(f"an image has {one} bytes, a request at most {most}; shrink it")
        return torch.cat([self._part(part) for part in images.split(most // one)]).to(images.device)

    def _part(self, images: Tensor) -> Tensor:
        request = _packed("images", images)
        digest = hashlib.sha256(request).digest()
        with self._lock:
            saved = self._paid[digest].popleft() if self._paid[digest] else None
            self.reused += len(images) * (saved is not None)
        answer = saved or self._ask("/predict", request)
        try:
            (answers,) = safetensors.torch.load(answer).values()
        except Exception:  # whatever a stranger may send
            raise ServiceError(f"{self.url} answers, but is no endpoint of http.serve") from None
        if self._save is not None and saved is None:
            self._keep(self._service, digest, answer)
        return answers

    def _keep(self, *row: bytes) -> None:
        try:
            with self._lock, closing(self._open()) as file, file:  # a transaction: all or nothing
                file.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (*row, _checksum(*row)))
        except sqlite3.Error as error:
            raise OSError(
                f"{self._save} cannot take the last answer ({error}); make room and start the "
                "attack again: what was answered before is kept"
            ) from None

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        try:
            with closing(http.client.HTTPConnection(self._host, timeout=TIMEOUT)) as line:
                line.request("POST" if body else "GET", path, body, {"Content-Type": FORM})
                response = line.getresponse()
                status, said = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            kept = f"; answers so far are in {self._save}" if self._save else ""
            raise ServiceError(
                f"{self.url} does not answer ({error or type(error).__name__}){kept}; "
                "start the service and the attack again"
            ) from None
        if status == 200:
            return said
        kinds = {400: ValueError, 413: ValueError, 422: ValueError, 429: BudgetSpent}
        why = said.decode(errors="replace") or "no reason given"
        raise kinds.get(status, ServiceError)(f"{self.url} refused ({status}): {why}")

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._save, timeout=TIMEOUT)
        file.text_factory = bytes  # a flipped bit makes text of a number
        return file

    def _load(self) -> None:
        try:
            with closing(self._open()) as file, file:
                columns = "service, request, answer, checksum"
                file.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns})")
                file.execute("DELETE FROM answers WHERE 0")  # can it be written to?
                rows = file.execute(f"SELECT {columns} FROM answers ORDER BY rowid").fetchall()
        except sqlite3.Error as error:
            raise ValueError(
                f"{self._save} holds no saved answers ({error}); name another file"
            ) from None
        whole = [row for *row, checksum in rows if _checksum(*row) == checksum]
        for service, digest, answer in whole:
            if service != self._service:
                raise ValueError(
                    f"{self._save} holds the answers of another service (another model, or one "
                    "that answers otherwise); name another file"
                )
            self._paid[digest].append(answer)
        if damaged := len(rows) - len(whole):
            warnings.warn(
                f"{damaged} of {len(rows)} answers in {self._save} are damaged: asking them anew",
                stacklevel=3,
            )


def _checksum(*row) -> bytes:
    """Of one row; whatever a damaged file gives in place of bytes has one too."""
    return hashlib.sha256(repr(row).encode()).digest()


def _packed(name: str, values: Tensor) -> bytes:
    """One tensor as a safetensors file."""
    return safetensors.torch.save({name: values.detach().cpu().contiguous()})
