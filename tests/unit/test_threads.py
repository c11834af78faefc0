"""What runs on the CPU runs on one thread, torch's and BLAS's: one seed, one result."""

import json
import os
import subprocess
import sys
import time

import pytest
import threadpoolctl
import torch

from vplib import threads


@pytest.fixture(autouse=True)
def two_threads():
    """Two threads each, whatever the machine and the tests before say."""
    threads._libraries.cache_clear()  # another test may have loaded scipy since
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


def used():
    """The threads of torch and, as a set, of each BLAS in this process."""
    found = threadpoolctl.threadpool_info()
    return torch.get_num_threads(), {i["num_threads"] for i in found if i["user_api"] == "blas"}


TINY, LARGE = torch.zeros(3, 1, 8, 8), torch.zeros(3, 3, 32, 32)


@pytest.mark.parametrize("images", [(), (TINY,), (LARGE,)])
def test_products_run_on_one_thread(images):
    assert used() == (2, {2})
    with threads.one_thread(*images):
        assert used() == (1, {1})
    assert used() == (2, {2})


def test_other_devices_keep_their_threads():
    with threads.one_thread(TINY.to("meta")):
        assert used() == (2, {2})
    with threads.one_thread(TINY), threads.one_thread(LARGE.to("meta")):
        assert used() == (1, {1})
    assert used() == (2, {2})


def test_an_error_and_an_inner_call_leave_it_as_it_was():
    with pytest.raises(ZeroDivisionError), threads.one_thread():
        with threads.one_thread(TINY):
            assert used() == (1, {1})
        assert used() == (1, {1})
        _ = 1 / 0
    assert used() == (2, {2})


def test_entering_is_cheap():
    with threads.one_thread():  # finds the libraries
        pass
    start = time.process_time()
    for _ in range(20):
        with threads.one_thread():
            pass
    assert (time.process_time() - start) / 20 < 0.01  # a thirtieth of that, measured


# --- one seed, one result -------------------------------------------------------------------------

# What images/adversarial_cloaking trains and computes, small: a recognizer of 32 x 32 color photos
# and generators, both kept in the cache, and two cloaks, which are not.
NOTEBOOK = """
import json, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from vplib import cache, datasets, experiment, seeding
from vplib.images import adversarial_cloaking as attack
from vplib.nets import gan
from vplib.victims import recognition

if sys.argv[2] == "notebook":
    experiment.seed_everything(3)
faces = datasets.load("faces", num_images=96)
embed = recognition.train_embedding(faces.images, faces.labels % 6, num_epochs=1, seed=3)
left = torch.get_num_threads()
nets = seeding.initialized(lambda: torch.nn.ModuleList(gan.dcgan((3, 32, 32), 4)), 3)
generator = gan.fit_gan(*nets, faces.images, num_steps=2, batch_size=16, seed=3)
photos, targets = faces.images[:2], embed(faces.images[2:4])
cloaks = attack.cloak(photos, targets, embed, budget=0.02, num_steps=3)
trained = cache.fingerprint(embed.state_dict(), generator.state_dict())
print(json.dumps([trained, cache.fingerprint(cloaks), cache.counts, left]))
"""


def computed(number, where, folder):
    """Hashes of what is trained and of the cloaks, the models counted, the threads then left."""
    settings = {"VPLIB_CACHE": str(folder), "OMP_NUM_THREADS": str(number)}
    command = [sys.executable, "-c", NOTEBOOK, str(number), where]
    ran = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_one_seed_has_one_result_with_one_thread_with_two_and_a_mixed_cache(tmp_path):
    *one, counts, left = computed(1, "notebook", tmp_path / "one")
    assert counts == {"reused": 0, "trained": 2} and left == 1
    *two, counts, left = computed(2, "notebook", tmp_path / "two")
    assert one == two and counts == {"reused": 0, "trained": 2} and left == 1
    sorted((tmp_path / "one").rglob("*.safetensors"))[0].unlink()
    *mixed, counts, left = computed(2, "script", tmp_path / "one")  # no seed_everything
    assert mixed[0] == one[0] and counts == {"reused": 1, "trained": 1} and left == 2
