"""The endpoint over HTTP: exact counts, right refusals, nothing paid twice."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection

import pytest
import safetensors.torch
import torch

from vplib import models
from vplib.attacks.membership_label_only import label_only as attack
from vplib.victims import http
from vplib.victims.endpoint import BudgetSpent, Endpoint

needs_http = pytest.mark.skipif(not http.can_serve(), reason="the extra `serve` is not installed")
SHAPE = (1, 4, 4)


def model(images):
    """A victim of three classes without training: which third of the pixels is brightest."""
    thirds = [part.mean(1) for part in images.flatten(1).tensor_split(3, dim=1)]
    return (5 * torch.stack(thirds, -1)).softmax(-1)


def some(n, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_importing_needs_no_starlette_and_serve_says_what_to_install():
    code = """
import sys
sys.modules["starlette"] = sys.modules["uvicorn"] = None
from vplib.victims import http
from vplib.victims.endpoint import Endpoint
try:
    with http.serve(Endpoint(len)):
        pass
except ImportError as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "pip install 'vplib[serve]'" in said


# Over HTTP


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(http, "MAX_BYTES", 10_000)
    with http.serve(Endpoint(model)) as running:
        yield running


def post(url, body, path="/predict", **headers):
    """The status and the body of the answer to a raw request."""
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=10)) as line:
        return post_on(line, body, path, {"Content-Type": http.FORM} | headers)


def post_on(line, body, path, headers):
    line.request("POST", path, body, headers)
    answer = line.getresponse()
    return answer.status, answer.read()


def wire(images, name="images"):
    return safetensors.torch.save({name: images})


def parts_of(body):
    """A body of unknown length, sent in chunks."""
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


def header(**tensor):
    """A safetensors file of 64 bytes of numbers, whose header may lie."""
    told = {"dtype": "F32", "shape": [1, 1, 4, 4], "data_offsets": [0, 64]} | tensor
    text = json.dumps({"images": told}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@needs_http
def test_the_client_is_the_same_callable(service):
    client = http.Client(service.url)
    assert torch.equal(client(some(6)), model(some(6)))
    assert client.queries == 6
    with http.serve(Endpoint(model, answers="labels")) as labels_only:
        assert torch.equal(http.Client(labels_only.url)(some(6)), model(some(6)).argmax(-1))


@needs_http
def test_it_listens_on_this_machine_only(service):
    assert service.url.startswith("http://127.0.0.1:")


@needs_http
def test_large_batches_travel_in_parts(service):
    client = http.Client(service.url)
    images = some(500)  # 32 kB of pixels, in requests of at most 10 kB
    assert torch.allclose(client(images), model(images)) and client.queries == 500


@needs_http
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff" * 100, 400),
        (b'{"images": [1, 2]}', 400),
        (wire(some(1))[:-1], 400),
        (wire(some(1)) + b"more", 400),
        (safetensors.torch.save({}), 400),
        (safetensors.torch.save({"images": some(1), "more": some(1)}), 400),
        (header(shape=[2, 1, 4, 4]), 400),
        (header(shape=[-1, 1, 4, 4]), 400),
        (header(shape=[2**62, 1, 4, 4]), 400),
        (header(shape="wide"), 400),
        (header(data_offsets=[0, 2**40]), 400),
        (header(dtype="F31"), 400),
        (wire(some(1).double()), 422),
        (wire(some(1).long()), 422),
        (wire(some(1)[0]), 422),
        (wire(some(0)), 422),
        (wire(some(1) * torch.nan), 422),
        (wire(some(1) * torch.inf), 422),
        (wire(some(1) + 1), 422),
        (wire(some(300)), 413),
        (b" " * 30_000, 413),
    ],
)
def test_refusals_have_a_status_and_a_sentence_and_cost_nothing(service, body, status):
    found, said = post(service.url, body)
    assert found == status and said and b"Traceback" not in said and b"File " not in said
    assert post(service.url, parts_of(body))[0] == status  # nor does a body without a length
    assert http.Client(service.url).queries == 0
    assert post(service.url, header())[0] == 200  # it goes on answering


@needs_http
def test_a_spent_budget_is_429_and_exact():
    endpoint = Endpoint(model, budget=5)
    with http.serve(endpoint) as running:
        client = http.Client(running.url)
        client(some(4))
        assert post(running.url, wire(some(2)))[0] == 429
        with pytest.raises(BudgetSpent, match=r"refused \(429\): 4 of 5 queries are spent"):
            client(some(2))
        client(some(1))
    assert endpoint.queries == 5


@needs_http
def test_a_model_that_fails_is_500_without_its_reason():
    def broken(images):
        if endpoint.queries > 1:
            raise RuntimeError("the secret path /srv/model.pt")
        return model(images)

    endpoint = Endpoint(broken)
    with http.serve(endpoint) as running:
        assert post(running.url, wire(some(1)))[0] == 200
        status, said = post(running.url, wire(some(1)))
        assert status == 500 and b"secret" not in said
        with pytest.raises(http.ServiceError, match="the model failed"):
            http.Client(running.url)(some(1))


@needs_http
def test_what_the_model_says_of_wrong_images_is_not_told_either():
    def picky(images):
        raise ValueError("the secret path /srv/model.pt")

    with http.serve(Endpoint(picky)) as running:
        status, said = post(running.url, wire(some(1)))
        assert status == 422 and b"secret" not in said and b"shape (1, 4, 4)" in said


@needs_http
@pytest.mark.parametrize(
    "odd",
    [
        lambda p: p.to(torch.complex64),
        lambda p: p.to(torch.complex128),
        lambda p: p.to_sparse(),
        lambda p: p[:, :0],
        lambda p: p.numpy(),
        lambda p: None,
    ],
)
@pytest.mark.parametrize("answers", ["probabilities", "labels"])
def test_an_answer_that_http_has_no_form_for_is_500_and_free(odd, answers):
    endpoint = Endpoint(lambda x: odd(model(x)), answers=answers)
    if answers == "probabilities":  # none of no classes can be masked
        endpoint = Endpoint(lambda x: odd(model(x)), top_k=1)
    with http.serve(endpoint) as running:
        status, said = post(running.url, wire(some(1)))
        assert status == 500 and b"nothing was counted" in said and endpoint.queries == 0


@needs_http
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),  # what a page may send anywhere unasked
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Host": "evil.example"}, 400),  # a name that was pointed at this machine afterwards
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "localhost"}, 200),
    ],
)
def test_a_web_page_cannot_spend_the_budget(service, headers, status):
    found, said = post(service.url, wire(some(3)), **headers)
    assert found == status and said
    assert http.Client(service.url).queries == (3 if status == 200 else 0)


@needs_http
def test_no_content_type_at_all_and_a_browsers_question_are_refused(service):
    with closing(HTTPConnection(service.url.removeprefix("http://"), timeout=10)) as line:
        assert post_on(line, wire(some(3)), "/predict", {})[0] == 415
        line.request("OPTIONS", "/predict", headers={"Origin": "http://evil.example"})
        answer = line.getresponse()
        assert answer.status == 405 and not answer.getheader("Access-Control-Allow-Origin")
    assert http.Client(service.url).queries == 0


@needs_http
def test_requests_on_one_connection_do_not_wait_for_each_other(service):
    with closing(HTTPConnection(service.url.removeprefix("http://"), timeout=10)) as line:
        seconds = []
        for _ in range(15):
            begin = time.perf_counter()
            assert post_on(line, wire(some(1)), "/predict", {"Content-Type": http.FORM})[0] == 200
            seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[3] < 0.03  # 0.04 of waiting and more without TCP_NODELAY


def ended(line):
    """Whether the other side has ended a connection."""
    try:
        while line.recv(1000):
            pass
    except ConnectionError:
        pass
    return True


@needs_http
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /pre",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nabc",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 900\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",  # whole and answered, then silent
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT",
    ],
)
def test_a_connection_that_only_waits_is_ended(sent, monkeypatch):
    monkeypatch.setattr(http, "PATIENCE", 1.0)
    with http.serve(Endpoint(model)) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=9) as line:
            line.sendall(sent)
            assert ended(line)
        assert torch.equal(http.Client(running.url)(some(2)), model(some(2)))


@needs_http
def test_patience_is_with_the_client_and_not_with_the_model(monkeypatch):
    monkeypatch.setattr(http, "PATIENCE", 1.0)
    endpoint = Endpoint(lambda x: time.sleep(1.5) or model(x))
    with http.serve(endpoint) as running:
        assert torch.equal(http.Client(running.url)(some(2)), model(some(2)))


NARROW = """
import resource, time
from vplib.victims import http
from vplib.victims.endpoint import Endpoint
http.PATIENCE = 1.0
with http.serve(Endpoint(lambda images: images.flatten(1)[:, :3])) as service:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    print(service.url, flush=True)
    time.sleep(60)
"""


@needs_http
def test_idle_connections_do_not_block_an_honest_client():
    pytest.importorskip("resource")
    command = [sys.executable, "-c", NARROW]
    with subprocess.Popen(command, stdout=-1, stderr=-3, text=True) as server:
        url = server.stdout.readline().strip()
        host, port = url.removeprefix("http://").split(":")
        lines = [socket.create_connection((host, int(port))) for _ in range(120)]
        try:
            assert torch.equal(http.Client(url)(some(2)), some(2).flatten(1)[:, :3])
        finally:
            server.kill()
            for line in lines:
                line.close()


@needs_http
def test_a_shape_that_the_model_does_not_take_is_422_and_free():
    victim = models.mlp(SHAPE, 3)
    with http.serve(Endpoint(lambda x: victim(x).softmax(-1))) as running:
        client = http.Client(running.url)
        for _ in range(2):  # before the first answer and after it
            with pytest.raises(ValueError, match=r"refused \(422\): .* of shape \(1, 5, 5\)"):
                client(torch.rand(2, 1, 5, 5))
            client(some(3))
        assert client.queries == 6


@needs_http
@pytest.mark.parametrize("answers", ["probabilities", "labels"])
def test_a_victim_of_doubles_answers_right_and_is_paid_once(answers):
    victim = models.mlp(SHAPE, 3).double()
    expected = victim(some(6).double()).softmax(-1)
    with http.serve(Endpoint(lambda x: victim(x).softmax(-1), answers=answers)) as running:
        client = http.Client(running.url)
        right = expected.argmax(-1) if answers == "labels" else expected
        assert torch.equal(client(some(6)), right) and client.queries == 6


@needs_http
def test_this_machine_is_asked_without_a_proxy(monkeypatch, service):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    port = service.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        url = f"http://{host}:{port}"
        if host == "127.0.0.2":  # listened to nowhere: the error is its own, not the proxy's
            with pytest.raises(http.ServiceError, match="127.0.0.2"):
                http.Client(url)
        else:
            assert torch.equal(http.Client(url)(some(2)), model(some(2)))


def test_an_address_of_ipv6_is_asked_without_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with other:

        def reply():
            line = other.accept()[0]
            line.recv(1000)
            line.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"queries": 7}')
            line.close()

        threading.Thread(target=reply).start()
        with pytest.raises(http.ServiceError):  # it answers once
            assert http.Client(f"http://[::1]:{other.getsockname()[1]}").queries == 7


@needs_http
def test_client_errors_are_clear(service):
    client = http.Client(service.url)
    with pytest.raises(ValueError, match=r"refused \(422\): images must be float32 of shape"):
        client(some(1)[0])
    with pytest.raises(ValueError, match=r"refused \(422\): images must be float32"):
        client(some(1).double())
    with pytest.raises(ValueError, match=r"refused \(422\): there is no image"):
        client(some(0))
    with pytest.raises(ValueError, match="an image has 14400 bytes, a request at most 9744; shr"):
        client(torch.rand(1, 1, 60, 60))


@needs_http
def test_twenty_clients_at_once():
    endpoint = Endpoint(model, budget=20 * 30)
    with http.serve(endpoint) as running:

        def ask(i):
            client = http.Client(running.url)
            return all(torch.equal(client(some(3, i)), model(some(3, i))) for _ in range(10))

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(ask, range(20)))
        with pytest.raises(BudgetSpent):
            http.Client(running.url)(some(1))
    assert endpoint.queries == 600


@needs_http
def test_a_client_that_hangs_up_does_not_stop_the_service(service):
    host = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host[0], int(host[1]))) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: ")
        line.sendall(b"application/octet-stream\r\nContent-Length: 5000\r\n\r\nabc")
    assert post(service.url, wire(some(1)))[0] == 200
    assert post(service.url, b"", "/no/such/place")[0] == 404


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(http.ServiceError, match="does not answer"):
            http.Client(url)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"220 this is a mail server\r\n", "does not answer"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "is no endpoint"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "is no endpoint"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 10**5, "is no endpoint"),
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
        with pytest.raises(http.ServiceError, match=message):
            http.Client(f"http://127.0.0.1:{other.getsockname()[1]}")


# Saved answers


def run_attack(victim):
    images = some(20, seed=1)
    labels = model(images).argmax(-1)
    return attack.boundary_distances(victim, images, labels, some(30, seed=2), num_steps=3)


class Failing(Endpoint):
    """Answers so many calls, then breaks."""

    def __init__(self, after):
        super().__init__(model, answers="labels")
        self.left = after

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("power cut")
        return super().__call__(images)


@needs_http
def test_an_interrupted_attack_resumes_without_paying_twice(tmp_path):
    paid, save = {}, tmp_path / "answers"
    plain = Endpoint(model, answers="labels")
    expected = run_attack(plain)
    first = Failing(11)
    with http.serve(first) as running:
        with pytest.raises(http.ServiceError):
            run_attack(http.Client(running.url, save=save))
    paid["before"] = first.queries
    second = Endpoint(model, answers="labels")
    with http.serve(second) as running:
        client = http.Client(running.url, save=save)
        found = run_attack(client)
        assert client.reused == paid["before"] > 0
    assert torch.equal(found.distances, expected.distances)
    assert torch.equal(found.queries, expected.queries)
    assert paid["before"] + second.queries == plain.queries == found.queries.sum()
    third = Endpoint(model, answers="labels", budget=0)
    with http.serve(third) as running:  # all is paid for by now
        assert torch.equal(run_attack(http.Client(running.url, save=save)).points, expected.points)


@needs_http
def test_repeats_in_one_run_are_paid_and_replayed_one_by_one(tmp_path):
    endpoint = Endpoint(model)
    with http.serve(endpoint) as running:
        client = http.Client(running.url, save=tmp_path / "a")
        for _ in range(3):
            client(some(2))
        assert endpoint.queries == 6 and client.reused == 0
        again = http.Client(running.url, save=tmp_path / "a")
        for _ in range(4):
            assert torch.equal(again(some(2)), model(some(2)))
        assert again.reused == 6 and endpoint.queries == 8


@needs_http
def test_a_write_that_is_cut_off_leaves_the_file_whole(tmp_path, service):
    save = tmp_path / "answers"
    client = http.Client(service.url, save=save)
    client(some(2))
    cut = sqlite3.connect(save)
    cut.execute("INSERT INTO answers VALUES ('half', 'done', 'and', 'bad')")
    cut.close()  # never committed, as when the process dies here
    again = http.Client(service.url, save=save)
    assert torch.equal(again(some(2)), model(some(2))) and again.reused == 2


@needs_http
def test_a_foreign_file_is_refused(tmp_path, service):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 2000)
    with pytest.raises(ValueError, match="holds no saved answers"):
        http.Client(service.url, save=tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == b"\xff\xd8" * 2000
    with pytest.raises(ValueError, match="holds no saved answers"):
        http.Client(service.url, save=tmp_path / "no" / "such" / "folder")
    for name, kind in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        kind(tmp_path / name)
        with pytest.raises(ValueError, match="holds no saved answers"):
            http.Client(service.url, save=tmp_path / name)
    before = sqlite3.connect(tmp_path / "before")  # of a version without checksums
    before.execute("CREATE TABLE answers (request TEXT, answer BLOB)")
    before.close()
    with pytest.raises(ValueError, match=r"holds no saved answers \(no such column"):
        http.Client(service.url, save=tmp_path / "before")


@needs_http
@pytest.mark.parametrize(
    "other",
    [
        Endpoint(lambda images: model(1 - images)),
        Endpoint(model, answers="labels"),
        Endpoint(model, top_k=1),
        Endpoint(model, decimals=2),
        Endpoint(models.mlp(SHAPE, 3)),
    ],
    ids=["model", "labels", "top_k", "decimals", "network"],
)
def test_a_file_serves_one_service_only(tmp_path, other):
    save = tmp_path / "answers"
    with http.serve(Endpoint(model, budget=9)) as running:
        http.Client(running.url, save=save)(some(2))
    before = save.read_bytes()
    with http.serve(other) as running:
        with pytest.raises(ValueError, match="holds the answers of another service .*name another"):
            http.Client(running.url, save=save)
    assert other.queries == 0 and save.read_bytes() == before
    with http.serve(Endpoint(model)) as running:  # another budget is the same service
        client = http.Client(running.url, save=save)
        assert torch.equal(client(some(2)), model(some(2))) and client.reused == 2


@needs_http
def test_flipped_bits_never_change_an_answer(tmp_path, service):
    save, asked = tmp_path / "answers", [some(2, seed) for seed in range(20)]
    client = http.Client(service.url, save=save)
    for images in asked:
        client(images)
    whole, outcomes = bytearray(save.read_bytes()), set()
    used = [i for i, byte in enumerate(whole) if byte]  # most of the file is empty
    for place in used[:: len(used) // 40]:
        flipped = whole.copy()
        flipped[place] ^= 1 << place % 8
        save.write_bytes(flipped)
        try:
            with warnings.catch_warnings(record=True):
                again = http.Client(service.url, save=save)
        except ValueError as error:
            assert "name another file" in str(error)
            outcomes.add("refused")
        else:
            assert all(torch.equal(again(images), model(images)) for images in asked[:20:4])
            outcomes.add("whole" if again.reused == 10 else "asked anew")
    assert "asked anew" in outcomes


@needs_http
def test_a_damaged_answer_is_told_and_asked_anew(tmp_path, service):
    save = tmp_path / "answers"
    http.Client(service.url, save=save)(some(2))
    with closing(sqlite3.connect(save)) as file, file:
        file.execute("UPDATE answers SET answer = substr(answer, 1, 70) || x'00000000'")
    with pytest.warns(UserWarning, match="1 of 1 answers in .* are damaged: asking them anew"):
        again = http.Client(service.url, save=save)
    assert torch.equal(again(some(2)), model(some(2))) and again.reused == 0


@needs_http
def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(tmp_path, service, monkeypatch):
    def full(client):
        file = opened(client)
        file.execute("PRAGMA max_page_count = 3")
        return file

    save, opened = tmp_path / "answers", http.Client._open
    client = http.Client(service.url, save=save)
    monkeypatch.setattr(http.Client, "_open", full)
    with pytest.raises(OSError, match=r"cannot take the last answer \(database or disk is full\)"):
        for seed in range(100):
            client(some(2, seed))
    monkeypatch.undo()
    again = http.Client(service.url, save=save)
    assert all(torch.equal(again(some(2, i)), model(some(2, i))) for i in range(seed))
    assert again.reused == 2 * seed > 0


@needs_http
def test_a_file_that_cannot_be_written_is_refused_before_a_query(tmp_path, service, monkeypatch):
    save = tmp_path / "answers"
    http.Client(service.url, save=save)
    real = sqlite3.connect
    readonly = dict(database=f"file:{save}?mode=ro", uri=True)
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: real(**readonly))
    with pytest.raises(ValueError, match="attempt to write a readonly database"):
        http.Client(service.url, save=save)


@needs_http
def test_an_answer_of_nonsense_is_a_clear_error_and_not_kept(tmp_path, service, monkeypatch):
    client, ask = http.Client(service.url, save=tmp_path / "answers"), http.Client._ask
    for nonsense in (b"<html>", b"", safetensors.torch.save({}), wire(some(1))[:-1]):
        monkeypatch.setattr(http.Client, "_ask", lambda *_, said=nonsense: said)
        with pytest.raises(http.ServiceError, match="answers, but is no endpoint"):
            client(some(1))
    monkeypatch.setattr(http.Client, "_ask", ask)
    assert torch.equal(http.Client(service.url, tmp_path / "answers")(some(1)), model(some(1)))


SERVER = """
import time, torch
from vplib.victims import http
from vplib.victims.endpoint import Endpoint
def model(images):
    time.sleep(0.02)
    thirds = [part.mean(1) for part in images.flatten(1).tensor_split(3, dim=1)]
    return (5 * torch.stack(thirds, -1)).softmax(-1)
with http.serve(Endpoint(model, answers="labels")) as service:
    print(service.url, flush=True)
    time.sleep(60)
"""


@needs_http
def test_a_killed_server_is_a_clear_error_and_nothing_is_lost(tmp_path):
    started = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(started, stdout=subprocess.PIPE, text=True)
    client = http.Client(server.stdout.readline().strip(), save=tmp_path / "answers")
    killer = threading.Timer(0.25, os.kill, (server.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(http.ServiceError, match="answers so far are in .*answers; start the serv"):
        while True:
            run_attack(client)
    server.wait()
    with closing(sqlite3.connect(tmp_path / "answers")) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone()[0] > 0
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as server:
        again = http.Client(server.stdout.readline().strip(), save=tmp_path / "answers")
        found = run_attack(again)
        assert again.reused > 0
        assert again.reused + again.queries == found.queries.sum()
        server.kill()


@needs_http
def test_closing_frees_the_port_at_once():
    with http.serve(Endpoint(model)) as running:
        port = int(running.url.rsplit(":")[-1])
        before = time.perf_counter()
    assert time.perf_counter() - before < 5
    socket.create_server(("127.0.0.1", port)).close()
