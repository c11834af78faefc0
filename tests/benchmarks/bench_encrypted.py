"""Encrypted inference: lanes against TenSEAL's batched tensors, packed taps against its tutorial.

    python tests/benchmarks/bench_encrypted.py [--rounds N]

Seconds are CPU seconds of one thread, for both sides, from a request's bytes to an answer's bytes
(the tutorial's side: from its ciphertext in memory, without reading bytes, which favours it). The
batch of the plain form takes minutes, so it runs once, on 64 images: its time does not depend on
how many slots are used. Networks are random, for timings do not depend on weights; both sides of a
row evaluate the same one, and their answers are compared. Nothing is asserted.

Many at once: what a batch costs each of four processes that share the cores. As many threads as
there are cores in each cost twenty times the CPU seconds there; with one each it is what it is
alone, but for the processor's cache, which they share too.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import time

import numpy as np

from vplib.defenses.encrypted_inference import lanes, messages, seal, session, taps, tensors
from vplib.defenses.encrypted_inference import network as networks

import tenseal  # isort: skip

CRYPTONETS = dict(image_size=28, maps=5, hidden=100, classes=10)
TUTORIAL = dict(image_size=28, maps=4, kernel=7, stride=3, padding=0, hidden=64, classes=10)
TUTORIAL_BITS = [31, 26, 26, 26, 26, 26, 26, 31]


def clocked(work):
    """What it returns, and CPU seconds."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def row(name: str, server: float, client: float, up: float, down: float, batch: str, bits: int):
    """Prints one line of the table."""
    print(
        f"  {name:34} server {server:8.3f} s  client {client:6.2f} s  up {up / 1e6:7.1f} MB  "
        f"down {down / 1e6:6.2f} MB  {batch:16} {bits} of 218 bits (128-bit security)"
    )


def ask(client, server, images):
    """One request to the end: logits, server seconds, client seconds, bytes up and down."""
    up = down = spent = 0
    replies = []
    requests, start = client.encrypt(images), time.process_time()
    for request in requests:
        reply, seconds = clocked(lambda request=request: server.answer(request))
        spent, up, down = spent + seconds, up + len(request), down + len(reply)
        replies.append(reply)
    logits = client.decrypt(replies)
    return logits, spent, time.process_time() - start - spent, up, down


def batches(rounds: int) -> None:
    """A full batch by lanes, and the plain form's."""
    network = networks.random_network(0, **CRYPTONETS)
    key, images = messages.new_session_key(), np.random.default_rng(0).random((4095, 28, 28))
    server = session.Server(lanes.Lanes(network, (9, 10, 9), 20), key, images[0])
    client = session.Client(server.offer(), key)
    print("\nCryptoNets' network (5 maps 5x5/2, 100, 10), one batch")
    results = [ask(client, server, images) for _ in range(rounds)]
    fast = statistics.median(r[1] for r in results)
    logits, _, client_seconds, up, down = results[-1]
    error = np.abs(logits - server.form.network.logits(images)).max()
    row("lanes", fast, client_seconds, up, down, "4,095 images", sum(client.parameters.coeff_bits))
    plain = session.Server(tensors.Tensors(network), key, images[0])
    plain_client = session.Client(plain.offer(), key)
    plain.answer(plain_client.keys())
    found, slow, client_seconds, up, down = ask(plain_client, plain, images[:64])
    row(
        "ckks_tensor(batch=True)", slow, client_seconds, up, down, "up to 4,095",
        sum(plain_client.parameters.coeff_bits),
    )  # fmt: skip
    both = (error, np.abs(found - network.logits(images[:64])).max())
    print(f"  largest error of a logit: {both[0]:.1e} (lanes), {both[1]:.1e} (plain form)")
    print(f"  ratio {slow / fast:.0f}x, goal 40x")
    print(
        f"  {4095 / fast * 3600:,.0f} images an hour; CryptoNets published 58,982 "
        f"({4095 / fast * 3600 / 58982:.0f}x; other machine, scheme and security: context)"
    )


def tutorial_answer(network, encoded, windows):
    """TenSEAL's tutorial on encrypted convolution, rebuilt from its description."""
    maps = [
        encoded.conv2d_im2col(kernel.tolist(), windows) + float(bias)
        for kernel, bias in zip(network.kernel, network.conv_bias, strict=True)
    ]
    x = tenseal.CKKSVector.pack_vectors(maps)
    x.square_()
    x = x.mm(network.fc1.T.tolist()) + network.fc1_bias.tolist()
    x.square_()
    return x.mm(network.fc2.T.tolist()) + network.fc2_bias.tolist()


def single(rounds: int) -> None:
    """One image by packed taps, and as in the tutorial, in turns."""
    network = networks.random_network(0, **TUTORIAL)
    key, images = messages.new_session_key(), np.random.default_rng(0).random((1, 28, 28))
    server = session.Server(taps.Taps(network), key, images[0])
    client = session.Client(server.offer(), key)
    server.answer(client.keys())
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=TUTORIAL_BITS, n_threads=1
    )
    context.global_scale = 2.0**26
    context.generate_galois_keys()
    print("\nthe tutorial's network (4 maps 7x7/3, 64, 10), one image")
    fast, slow = [], []
    for turn in range(rounds + 1):
        ours = ask(client, server, images)
        start = time.process_time()
        encoded, windows = tenseal.im2col_encoding(context, images[0].tolist(), 7, 7, 3)
        encoding = time.process_time() - start
        theirs, seconds = clocked(
            lambda encoded=encoded, windows=windows: tutorial_answer(network, encoded, windows)
        )
        if turn:  # the first warms both up
            fast.append(ours[1])
            slow.append(seconds)
    row(
        "packed taps", statistics.median(fast), *ours[2:], "1 image",
        sum(client.parameters.coeff_bits),
    )  # fmt: skip
    up, down = len(encoded.serialize()), len(theirs.serialize())
    row(
        "TenSEAL's tutorial", statistics.median(slow), encoding, up, down, "1 image",
        sum(TUTORIAL_BITS),
    )  # fmt: skip
    truth = network.logits(images)
    errors = [np.abs(v - truth).max() for v in (ours[0], np.array(theirs.decrypt()))]
    print(f"  largest error of a logit: {errors[0]:.1e} (taps), {errors[1]:.1e} (tutorial)")
    print(f"  ratio {statistics.median(slow) / statistics.median(fast):.0f}x, goal 35x")


def answered(together) -> float:
    """CPU seconds of a server's answer to a full batch, in a process of its own.

    The lanes are random numbers: what a server does with them is the same for all.
    """
    network, rng = networks.random_network(0, **CRYPTONETS), np.random.default_rng(0)
    key, form = messages.new_session_key(), lanes.Lanes(network, (9, 10, 9), 20)
    server = session.Server(form, key, rng.random((28, 28)))
    about = dict(form=form.name, parameters=form.parameters.id, key="", nonce="")
    shape, seconds = (8192 // lanes.CHUNK, 28**2, 2, lanes.CHUNK), 0.0
    together.wait(600)
    for part, prime in enumerate(form.primes):
        lane = rng.integers(prime, size=shape, dtype="<u4")
        message = messages.pack_message(key, "request", lane, part=part, **about)
        seconds += clocked(lambda message=message: server.answer(message))[1]
    return seconds


def many_at_once(rounds: int, processes: int = 4) -> None:
    """The CPU seconds of batches answered by several processes at once, against alone."""
    fresh, spent = multiprocessing.get_context("spawn"), {}
    with fresh.Manager() as manager:
        for count in (1, processes):
            spent[count] = []
            for _ in range(rounds):
                with fresh.Pool(count) as pool:
                    barrier = [manager.Barrier(count)] * count
                    spent[count] += pool.map(answered, barrier, chunksize=1)
    alone, each = (statistics.mean(spent[count]) for count in (1, processes))
    print(f"\nlanes, {processes} processes at once on {os.cpu_count()} cores, a batch each")
    print(f"  alone {alone:.2f} s, at once {each:.2f} s each; ratio {each / alone:.2f}, goal 1.3")


def main() -> None:
    """Compares both forms."""
    parser = argparse.ArgumentParser(description="encrypted inference against TenSEAL")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of the fast sides")
    options = parser.parse_args()
    print(f"{seal.version()}, one thread, {platform.machine()}; CPU seconds, medians")
    many_at_once(options.rounds)
    single(options.rounds)
    batches(options.rounds)


if __name__ == "__main__":
    main()
