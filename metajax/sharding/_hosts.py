"""Several hosts as one: what all of them must know alike, and arrays of which each holds a part.

Functions that communicate must be called by all hosts, in the same order. On a single host they
cost nothing.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from metajax.types import Array


def is_first() -> bool:
    """Whether this is the host that writes and prints."""
    return jax.process_index() == 0


# Values.


def run_on_first(make: Callable[[], tuple[Any, bytes]]) -> tuple[Any, bytes]:
    """Runs ``make`` on the first host alone, and returns on all what it returned. Communicates.

    That is a value that JSON can express, and bytes. What ``make`` raises is raised on the first
    host as it is, and on the others as a RuntimeError.
    """
    if jax.process_count() == 1:
        return make()

    value = None
    data = b""
    error = None
    if is_first():
        try:
            value, data = make()
        except Exception as e:
            error = e

    failure = None if error is None else str(error)
    message = json.dumps([value, failure]).encode()
    message, data = _broadcast_from_first(message, data)
    value, failure = json.loads(message)

    if error is not None:
        raise error
    if failure is not None:
        raise RuntimeError(f"on the first host: {failure}")
    return value, data


def agreed(value: Any) -> Any:
    """The first host's ``value``, a number or a string, on all of them. Communicates."""
    first_value, _ = run_on_first(lambda: (value, b""))
    return first_value


def maximum(number: int) -> int:
    """The largest of the hosts' numbers, on all of them. Communicates."""
    if jax.process_count() == 1:
        return number
    numbers = multihost_utils.process_allgather(np.int32(number))
    return int(numbers.max())


def _broadcast_from_first(*parts: bytes) -> list[bytes]:
    # All hosts must know the lengths before they can receive the parts. They travel as bytes too,
    # since JAX may know no 64-bit numbers.
    lengths = np.array(list(map(len, parts)), np.int64)
    received = _broadcast_bytes(lengths.tobytes(), lengths.nbytes)
    lengths = np.frombuffer(received, np.int64)
    return list(map(_broadcast_bytes, parts, lengths))


def _broadcast_bytes(data: bytes, length: int) -> bytes:
    if length == 0:
        return b""
    buffer = np.zeros(length, np.uint8)
    if is_first():
        buffer = np.frombuffer(data, np.uint8)
    received = multihost_utils.broadcast_one_to_all(buffer)
    return np.asarray(received).tobytes()


# Arrays.


def gathered(x: Any) -> Any:
    """The whole of an array that is split over the hosts; anything else as it is. Communicates.

    NumPy can then read it on each host.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    if not isinstance(x.sharding, NamedSharding):
        raise ValueError(
            f"use metajax.sharding.place for what is split over hosts: {x.sharding}"
        )
    replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
    return jax.jit(_identity, out_shardings=replicated)(x)


def put(x: Any, sharding: Sharding) -> Array:
    """`jax.device_put` of what every host holds whole: each takes its part, none communicates."""
    return map_key_data(partial(_put_numbers, sharding=sharding), x)


def map_key_data(f: Callable, x: Any) -> Any:
    """Applies ``f`` to the numbers of an array, which for a typed key are its key data."""
    if not isinstance(x, jax.Array):
        return f(x)
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f(x)
    impl = jax.random.key_impl(x)
    data = f(jax.random.key_data(x))
    return jax.random.wrap_key_data(data, impl=impl)


def _put_numbers(x: Any, sharding: Sharding) -> Array:
    is_split_over_hosts = isinstance(x, jax.Array) and not x.is_fully_addressable
    if sharding.is_fully_addressable or is_split_over_hosts:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _identity(x):  # one function, so that all calls share their compilations
    return x
