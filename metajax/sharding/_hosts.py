"""Several hosts as one: what all of them must know alike, and arrays of which each holds a part.

What communicates must be called by all hosts, in the same order. On a single one everything here is
free.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from metajax.types import Array


def is_first() -> bool:
    """Whether this is the host that writes and prints."""
    return jax.process_index() == 0


def run_on_first(make: Callable[[], tuple[Any, bytes]]) -> tuple[Any, bytes]:
    """What ``make`` returns on the first host, on all of them: a value that JSON can say, and
    bytes. Communicates.

    What ``make`` raises there is raised on the others as a RuntimeError.
    """
    if jax.process_count() == 1:
        return make()
    error, value, data = None, None, b""
    if is_first():
        try:
            value, data = make()
        except Exception as e:
            error = e
    said = json.dumps([value, error and str(error)]).encode()
    # The lengths as bytes too, since JAX may know no 64-bit numbers.
    lengths = np.frombuffer(
        _broadcast(np.array([len(said), len(data)], np.int64).tobytes(), 16), np.int64
    )
    value, failure = json.loads(_broadcast(said, lengths[0]))
    if error is not None:
        raise error
    if failure is not None:
        raise RuntimeError(f"on the first host: {failure}")
    return value, _broadcast(data, lengths[1])


def agreed(value: Any) -> Any:
    """The first host's ``value``, a number or a string, on all of them. Communicates."""
    return run_on_first(lambda: (value, b""))[0]


def _broadcast(data: bytes, size: int) -> bytes:
    buffer = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes() if size else b""


def maximum(number: int) -> int:
    """The largest of the hosts' numbers, on all of them. Communicates."""
    return (
        int(multihost_utils.process_allgather(np.int32(number)).max())
        if jax.process_count() > 1
        else number
    )


def gathered(x: Any) -> Any:
    """An array that NumPy can read here; one of which each host holds a part is gathered, which
    communicates.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    if not isinstance(x.sharding, NamedSharding):
        raise ValueError(
            f"an array is split over the hosts by {x.sharding}; place it with metajax.sharding.place"
        )
    return jax.jit(_itself, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)


def _itself(x):  # one function, so that all calls share their compilations
    return x


def put(x: Any, sharding: Sharding) -> Array:
    """`jax.device_put` of what each host holds whole; each takes its part, without talk between
    them.
    """

    def part(x):
        if sharding.is_fully_addressable or (
            isinstance(x, jax.Array) and not x.is_fully_addressable
        ):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return map_key_data(part, x)


def map_key_data(f: Callable, x: Any) -> Any:
    """Applies ``f`` to the numbers of an array, which for a typed key are its key data."""
    if isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(f(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return f(x)
