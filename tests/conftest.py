import jax
import pytest


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


collect_ignore = ["four_devices.py", "two_processes.py"]  # scripts, run by tests in processes of their own
