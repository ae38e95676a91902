"""Random arrays drawn along one axis."""

import functools

import jax
import numpy as np
import pytest

from metajax._random import draw_flat

UNIFORM = functools.partial(jax.random.uniform, minval=-0.3, maxval=0.4)
TRUNCATED = functools.partial(jax.random.truncated_normal, lower=-2.0, upper=2.0)


@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("distribution", [jax.random.normal, UNIFORM, TRUNCATED])
@pytest.mark.parametrize("shape", [(8, 10), (3, 5, 7), ()])
def test_they_are_the_numbers_of_jax(key, shape, distribution, partitionable):
    with jax.threefry_partitionable(partitionable):
        np.testing.assert_array_equal(
            draw_flat(key, shape, distribution), distribution(key, shape=shape)
        )
