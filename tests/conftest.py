"""What all tests share."""

import gc
import importlib.metadata
import itertools
import os
import signal
from pathlib import Path

# Tests compile a lot and compute little: the compiler is not to try hard. Set before the first
# `import jax`.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if _JAXLIB < (0, 11):  # half the time again; an unknown flag would end the process
    _QUICK += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# To cut JAX's own frames out of the traceback of each error that a test expects takes longer than
# to find the error.
jax.config.update("jax_traceback_filtering", "off")

# What JAX has traced and compiled stays: to look through it for garbage again and again takes long.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish():
    """Nor is what has been imported looked through."""
    gc.freeze()


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """What people switch on to find their own mistakes: none of ours may be in their way.

    Broadcasting must be said aloud, NaN is an error, and so is a key that is used twice.
    """
    with (
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.debug_key_reuse(True),
    ):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a job in the background of a shell ignores it, and so would the
    run.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


collect_ignore = [
    "four_devices.py",
    "two_processes.py",
]  # scripts, run by tests in processes of their own


def pytest_collection_modifyitems(items):
    """What needs the run on four devices is slow, and is to be done by one worker, who then runs it
    once.
    """
    for item in items:
        if "found" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("four devices"))


MAPPINGS = Path("/proc/self/maps")  # of Linux


def pytest_runtest_logfinish(_done=itertools.count(1)):  # noqa: B008
    """A process may have 65,530 memory mappings, and each compiled program keeps some of them."""
    is_time = next(_done) % 20 == 0 and MAPPINGS.exists()
    if is_time and MAPPINGS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
