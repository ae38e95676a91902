"""The check for NaN: of every value, without a copy, and once of what cannot change."""

import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import _checks

LARGE = 2**22 + 3


def refused(x, num_bad):
    with pytest.raises(
        ValueError, match=f"data holds {num_bad} NaN or infinite values"
    ):
        _checks.finite("data", x)


@pytest.mark.parametrize("where", [0, 2**16, LARGE - 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_among_many_is_found(where, bad):
    x = np.ones(LARGE, np.float32)
    _checks.finite("data", x)
    x[where] = bad  # in the same array, as a caller may
    refused(x, 1)
    refused(jnp.array(x), 1)


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
)
def test_large_numbers_are_finite_though_their_sum_is_not(dtype):
    largest = jnp.finfo(dtype).max
    x = np.full((100, 40), largest, dtype)
    _checks.finite("data", x)
    _checks.finite("data", x[::2, ::3])
    x[3, 7], x[98, 39] = np.inf, -np.inf
    refused(x, 2)
    refused(x.T, 2)
    _checks.finite("data", x[::2, :39])


def test_memory_is_that_of_a_block():
    x = np.ones((LARGE // 8, 8), np.float32)
    tracemalloc.start()
    _checks.finite("data", x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 50


def test_an_array_that_cannot_change_is_looked_at_once():
    x = jnp.ones(4 * LARGE)
    _checks.finite("data", x)
    begin = time.perf_counter()
    for _ in range(10):
        _checks.finite("data", x)
    ten_times = time.perf_counter() - begin
    begin = time.perf_counter()
    _checks.finite("data", x + 0)
    assert ten_times < time.perf_counter() - begin

    del x
    assert not _checks._KNOWN_FINITE, "what is known is forgotten with the array"


def test_it_is_looked_at_while_something_else_is_traced():
    x = jnp.ones(LARGE).at[5].set(jnp.nan)

    @jax.jit
    def f(y):
        _checks.finite("data", {"x": x, "y": y})
        return y

    with pytest.raises(ValueError, match=r"data\['x'\] holds 1 NaN"):
        f(1.0)


def test_the_count_on_a_device_is_that_on_the_host():
    x = jnp.ones((30, 7)).at[3, 4].set(jnp.nan).at[0, 0].set(-jnp.inf)
    assert (
        int(_checks._count_on_device(x)) == _checks._count_on_host(np.asarray(x)) == 2
    )
