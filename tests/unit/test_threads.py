"""Small products run on one thread, torch's and BLAS's, and leave both as they were."""

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


@pytest.mark.parametrize("images", [(), (TINY,)])
def test_small_products_run_on_one_thread(images):
    assert used() == (2, {2})
    with threads.one_thread(*images):
        assert used() == (1, {1})
    assert used() == (2, {2})


def test_large_images_and_other_devices_keep_their_threads():
    for images in (LARGE, TINY.to("meta")):
        with threads.one_thread(images):
            assert used() == (2, {2})
    with threads.one_thread(TINY), threads.one_thread(LARGE):
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
