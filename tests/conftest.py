"""What all tests share."""

import os
from pathlib import Path

# Tests compile a lot and compute little: the compiler is not to try hard. Set before the first `import jax`.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


collect_ignore = ["four_devices.py", "two_processes.py"]  # scripts, run by tests in processes of their own


def pytest_collection_modifyitems(items):
    """What needs the run on four devices is slow, and is to be done by one worker, who then runs it once."""
    for item in items:
        if "found" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("four devices"))


def pytest_runtest_teardown():
    """Compiled programs stay in memory, gigabytes of them by the end; here they are let go of now and then."""
    pages = Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 3 * 2**30:
        jax.clear_caches()
