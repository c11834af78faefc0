"""All tests of one run share one fresh cache of trained models, also across workers."""

import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit what the first process sets
    os.environ["VPLIB_CACHE"] = tempfile.mkdtemp(prefix="vplib-tests-")


def pytest_unconfigure(config):
    """Removes the cache when the last process ends."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["VPLIB_CACHE"], ignore_errors=True)
