"""The endpoint, in this process and over HTTP: exact counts, right refusals, nothing paid twice."""

import base64
import http.client
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

from vplib.attacks.membership_label_only import label_only as attack
from vplib.victims import endpoint as api

needs_http = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("fastapi", "uvicorn")),
    reason="the extra `serve` is not installed",
)
SHAPE = (1, 4, 4)


def model(images):
    """A victim of three classes without training: which third of the pixels is brightest."""
    thirds = [part.mean(1) for part in images.flatten(1).tensor_split(3, dim=1)]
    return (5 * torch.stack(thirds, -1)).softmax(-1)


def some(n, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


# In this process


def test_probabilities_are_the_models():
    assert torch.equal(api.Endpoint(model)(some(5)), model(some(5)))


def test_labels_topk_and_rounded():
    images, p = some(20), model(some(20))
    assert torch.equal(api.Endpoint(model, answers="labels")(images), p.argmax(-1))
    top = api.Endpoint(model, top_k=1)(images)
    assert ((top > 0).sum(-1) == 1).all() and torch.equal(top.amax(-1), p.amax(-1))
    coarse = api.Endpoint(model, decimals=1)(images)
    assert torch.allclose(coarse * 10, (coarse * 10).round(), atol=1e-5)
    both = api.Endpoint(model, top_k=2, decimals=2)(images)
    assert torch.equal(both.argmax(-1), p.argmax(-1)) and ((both > 0).sum(-1) <= 2).all()


def test_repeats_count_and_the_budget_is_exact():
    endpoint = api.Endpoint(model, budget=10)
    for _ in range(2):
        endpoint(some(4))
    assert endpoint.queries == 8
    with pytest.raises(api.BudgetSpent, match="8 of 10 queries are spent; 3 more would exceed"):
        endpoint(some(3))
    assert endpoint.queries == 8  # none of the three was answered or counted
    endpoint(some(2))
    assert endpoint.queries == 10
    with pytest.raises(api.BudgetSpent):
        endpoint(some(1))


def test_the_model_is_not_asked_over_budget():
    asked = []
    endpoint = api.Endpoint(lambda x: asked.append(len(x)) or model(x), budget=0)
    with pytest.raises(api.BudgetSpent):
        endpoint(some(1))
    assert asked == []


def test_a_model_that_fails_costs_nothing():
    endpoint = api.Endpoint(lambda x: 1 / 0, budget=5)
    with pytest.raises(ZeroDivisionError):
        endpoint(some(3))
    assert endpoint.queries == 0


def test_twenty_callers_at_once_do_not_overdraw():
    endpoint = api.Endpoint(model, budget=50)

    def ask(i):
        try:
            return len(endpoint(some(3, i)))
        except api.BudgetSpent:
            return 0

    with ThreadPoolExecutor(20) as pool:
        answered = sum(pool.map(ask, range(40)))
    assert answered == endpoint.queries == 48


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (some(2).numpy(), "not ndarray"),
        (some(2).double(), "must be float32"),
        (some(2)[0], r"\(N, C, H, W\), not"),
        (torch.rand(2, 1, 5, 4), r"of shape \(1, 4, 4\), not \(1, 5, 4\)"),
        (some(2)[:0], "there is no image"),
        (some(2) * torch.nan, r"must lie in \[0, 1\]"),
        (some(2) + 1, r"must lie in \[0, 1\]"),
    ],
)
def test_wrong_images_are_refused_and_free(images, message):
    endpoint = api.Endpoint(model, shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        endpoint(images)
    assert endpoint.queries == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(answers="label"), "did you mean 'labels'"),
        (dict(answers="labels", top_k=1), "labels cannot be masked"),
        (dict(top_k=0), "top_k must be 1 or more"),
        (dict(decimals=-1), "decimals must be 0 or more"),
        (dict(budget=-1), "budget must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        api.Endpoint(model, **settings)


def test_importing_needs_no_fastapi_and_serve_says_what_to_install():
    code = """
import sys
sys.modules["fastapi"] = sys.modules["uvicorn"] = None
from vplib.victims import endpoint as api
try:
    api.serve(api.Endpoint(len))
except ImportError as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "pip install 'vplib[serve]'" in said


# Over HTTP


@pytest.fixture
def service():
    with api.serve(api.Endpoint(model, shape=SHAPE), max_bytes=10_000) as running:
        yield running


def post(url, body, path="/predict"):
    """The status and the parsed answer of a raw request."""
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wire(images, **changes):
    data = base64.b64encode(images.numpy().tobytes()).decode()
    return json.dumps({"shape": list(images.shape), "data": data} | changes).encode()


@needs_http
def test_the_client_is_the_same_callable(service):
    client = api.Client(service.url)
    assert torch.equal(client(some(6)), model(some(6)))
    assert client.queries == 6 and client.answers == "probabilities"
    with api.serve(api.Endpoint(model, answers="labels")) as labels_only:
        assert torch.equal(api.Client(labels_only.url)(some(6)), model(some(6)).argmax(-1))


@needs_http
def test_it_listens_on_this_machine_only(service):
    assert service.url.startswith("http://127.0.0.1:")


@needs_http
def test_large_batches_travel_in_parts(service):
    client = api.Client(service.url)
    images = some(500)  # 32 kB of pixels, in requests of at most 10 kB
    assert torch.allclose(client(images), model(images)) and client.queries == 500


@needs_http
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 5000, 400),
        (b"[1, 2]", 400),
        (b'"text"', 400),
        (b"{}", 400),
        (b'{"shape": 5, "data": ""}', 400),
        (b'{"shape": [NaN, 1, 4, 4], "data": ""}', 400),
        (b'{"shape": [-1, 1, 4, 4], "data": ""}', 400),
        (b'{"shape": [true, 1, 4, 4], "data": ""}', 400),
        (b'{"shape": [1, 1, 4, 4], "data": 7}', 400),
        (b'{"shape": [1, 1, 4, 4], "data": "!"}', 400),
        (b'{"shape": [999999999, 1, 4, 4], "data": ""}', 400),
        (wire(some(1), type="<f8"), 400),
        (wire(some(1), type=["<f4"]), 400),
        (wire(some(1), shape=[2, 1, 4, 4]), 400),
        (wire(some(1), shape=[1, 1, 16]), 422),
        (wire(some(1), shape=[1, 1, 2, 8]), 422),
        (wire(some(0)), 422),
        (wire(some(1) * torch.nan), 422),
        (wire(some(1) * torch.inf), 422),
        (wire(some(1) + 1), 422),
        (wire(some(120)), 413),
        (b" " * 500_000, 413),
    ],
)
def test_refusals_have_a_status_and_a_sentence_and_cost_nothing(service, body, status):
    found, said = post(service.url, body)
    assert found == status and set(said) == {"error"}
    assert "Traceback" not in said["error"] and "File " not in said["error"]
    assert api.Client(service.url).queries == 0
    assert post(service.url, wire(some(1)))[0] == 200  # it goes on answering


@needs_http
def test_a_spent_budget_is_429_and_exact():
    endpoint = api.Endpoint(model, budget=5)
    with api.serve(endpoint) as running:
        client = api.Client(running.url)
        client(some(4))
        assert post(running.url, wire(some(2)))[0] == 429
        with pytest.raises(api.BudgetSpent, match=r"refused \(429\): 4 of 5 queries are spent"):
            client(some(2))
        client(some(1))
    assert endpoint.queries == 5


@needs_http
def test_a_model_that_fails_is_500_without_its_reason():
    def broken(images):
        raise RuntimeError("the secret path /srv/model.pt")

    with api.serve(api.Endpoint(broken)) as running:
        status, said = post(running.url, wire(some(1)))
        assert status == 500 and "secret" not in str(said)
        with pytest.raises(api.ServiceError, match="the model failed"):
            api.Client(running.url)(some(1))


@needs_http
def test_client_errors_are_clear(service):
    client = api.Client(service.url)
    with pytest.raises(ValueError, match=r"refused \(422\): images must be of shape"):
        client(torch.rand(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"refused \(413\): a request may have 10000 bytes"):
        client(torch.rand(1, 1, 60, 60))
    with pytest.raises(ValueError, match="only float32 and int64 travel"):
        client(some(1).double())


@needs_http
def test_twenty_clients_at_once():
    endpoint = api.Endpoint(model, budget=20 * 30)
    with api.serve(endpoint) as running:

        def ask(i):
            client = api.Client(running.url)
            return all(torch.equal(client(some(3, i)), model(some(3, i))) for _ in range(10))

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(ask, range(20)))
        with pytest.raises(api.BudgetSpent):
            api.Client(running.url)(some(1))
    assert endpoint.queries == 600


@needs_http
def test_a_client_that_hangs_up_does_not_stop_the_service(service):
    host = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host[0], int(host[1]))) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    assert post(service.url, wire(some(1)))[0] == 200
    connection = http.client.HTTPConnection(*host, timeout=10)
    connection.request("GET", "/no/such/place")
    assert connection.getresponse().status == 404


@needs_http
def test_a_port_that_is_taken_says_so(service):
    with pytest.raises(OSError, match="in use"):
        api.serve(api.Endpoint(model), port=int(service.url.rsplit(":")[-1]))


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(api.ServiceError, match="does not answer"):
            api.Client(url)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"220 this is a mail server\r\n", "does not answer"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "does not answer"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "is no endpoint"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", r"refused \(502\): no reason given"),
    ],
)
def test_someone_else_there(answer, message):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def reply():
            line = other.accept()[0]
            line.recv(1000)
            line.sendall(answer)
            line.close()

        threading.Thread(target=reply).start()
        with pytest.raises(api.ServiceError, match=message):
            api.Client(f"http://127.0.0.1:{other.getsockname()[1]}")


# Saved answers


def run_attack(victim):
    images = some(20, seed=1)
    labels = model(images).argmax(-1)
    return attack.boundary_distances(victim, images, labels, some(30, seed=2), num_steps=3)


class Failing:
    """Answers so many calls, then breaks."""

    def __init__(self, after):
        self.left = after

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("power cut")
        return model(images)


@needs_http
def test_an_interrupted_attack_resumes_without_paying_twice(tmp_path):
    paid, save = {}, tmp_path / "answers"
    plain = api.Endpoint(model, answers="labels")
    expected = run_attack(plain)
    first = api.Endpoint(Failing(11), answers="labels")
    with api.serve(first) as running:
        with pytest.raises(api.ServiceError):
            run_attack(api.Client(running.url, save=save))
    paid["before"] = first.queries
    second = api.Endpoint(model, answers="labels")
    with api.serve(second) as running:
        client = api.Client(running.url, save=save)
        found = run_attack(client)
        assert client.reused == paid["before"] > 0
    assert torch.equal(found.distances, expected.distances)
    assert torch.equal(found.queries, expected.queries)
    assert paid["before"] + second.queries == plain.queries == found.queries.sum()
    third = api.Endpoint(model, answers="labels", budget=0)
    with api.serve(third) as running:  # all is paid for by now
        assert torch.equal(run_attack(api.Client(running.url, save=save)).points, expected.points)


@needs_http
def test_repeats_in_one_run_are_paid_and_replayed_one_by_one(tmp_path):
    endpoint = api.Endpoint(model)
    with api.serve(endpoint) as running:
        client = api.Client(running.url, save=tmp_path / "a")
        for _ in range(3):
            client(some(2))
        assert endpoint.queries == 6 and client.reused == 0
        again = api.Client(running.url, save=tmp_path / "a")
        for _ in range(4):
            assert torch.equal(again(some(2)), model(some(2)))
        assert again.reused == 6 and endpoint.queries == 8


@needs_http
def test_a_write_that_is_cut_off_leaves_the_file_whole(tmp_path, service):
    save = tmp_path / "answers"
    client = api.Client(service.url, save=save)
    client(some(2))
    cut = sqlite3.connect(save)
    cut.execute("INSERT INTO answers VALUES ('half', 'done')")
    cut.close()  # never committed, as when the process dies here
    again = api.Client(service.url, save=save)
    assert torch.equal(again(some(2)), model(some(2))) and again.reused == 2


@needs_http
def test_a_foreign_file_is_refused(tmp_path, service):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 2000)
    with pytest.raises(ValueError, match="holds no saved answers"):
        api.Client(service.url, save=tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == b"\xff\xd8" * 2000
    with pytest.raises(ValueError, match="holds no saved answers"):
        api.Client(service.url, save=tmp_path / "no" / "such" / "folder")


SERVER = """
import time, torch
from vplib.victims import endpoint as api
def model(images):
    time.sleep(0.02)
    thirds = [part.mean(1) for part in images.flatten(1).tensor_split(3, dim=1)]
    return (5 * torch.stack(thirds, -1)).softmax(-1)
print(api.serve(api.Endpoint(model, answers="labels")).url, flush=True)
time.sleep(60)
"""


@needs_http
def test_a_killed_server_is_a_clear_error_and_nothing_is_lost(tmp_path):
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    client = api.Client(server.stdout.readline().strip(), save=tmp_path / "answers")
    killer = threading.Timer(0.25, os.kill, (server.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(api.ServiceError, match="answers so far are in .*answers; start the serv"):
        while True:
            run_attack(client)
    server.wait()
    with closing(sqlite3.connect(tmp_path / "answers")) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone()[0] > 0
    endpoint = api.Endpoint(model, answers="labels")
    with api.serve(endpoint) as running:
        again = api.Client(running.url, save=tmp_path / "answers")
        found = run_attack(again)
        assert again.reused > 0
        assert again.reused + endpoint.queries == found.queries.sum()


@needs_http
def test_closing_frees_the_port_at_once():
    running = api.serve(api.Endpoint(model))
    port = int(running.url.rsplit(":")[-1])
    before = time.perf_counter()
    running.close()
    assert time.perf_counter() - before < 5
    with api.serve(api.Endpoint(model), port=port) as again:
        assert api.Client(again.url).queries == 0
