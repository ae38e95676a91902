"""Backpropagation through a loop within a given number of states (Griewank & Walther 2000).

"Algorithm 799: revolve", ACM TOMS 26(1): of all schedules that keep so many states, binomial
checkpointing runs the fewest steps anew. It is a table here, made with Python's integers, and the
program that follows it holds one step and one derivative of a step, however long the loop is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from metajax._closures import hoisted
from metajax._trees import combine, is_inexact, keys_as_numbers, partition
from metajax.types import Array, PyTree


class Schedule(NamedTuple):
    """Where the states of a loop are kept, in rows; the last row is at work, and may be lost.

    Attributes:
      num_states: rows but the last.
      first: ``[length]``, the row for the state before each step, in the forward pass.
      again: ``[n, 2]``, steps that the backward pass runs anew: from the row of the state before it
        to that for the one after it. The last is not run.
      until: ``[length]``, how many of these are run before step ``t`` is differentiated.
      row: ``[length]``, where the state before step ``t`` then is.
    """

    num_states: int
    first: np.ndarray
    again: np.ndarray
    until: np.ndarray
    row: np.ndarray


def schedule(length: int, num_states: int) -> Schedule:
    """Binomial checkpointing of a loop, backwards from its last step."""
    work = num_states
    kept = [0]  # the steps before which a state is kept, by row
    again: list[tuple[int, int]] = []
    until, row = np.zeros(length, np.int32), np.zeros(length, np.int32)

    def reach(step: int) -> tuple[list[tuple[int, int]], int]:
        """The steps that lead to the state before this one, and the row where it is."""
        moves = []
        while kept[-1] > step:
            kept.pop()  # what comes after it has been differentiated
        time, source = kept[-1], len(kept) - 1
        while time < step:
            advance = _advance(step + 1 - time, num_states - len(kept) + 1)
            for i in range(advance):
                keep = i == advance - 1 and len(kept) < num_states
                target = len(kept) if keep else work
                moves.append((source, target))
                source = target
            time += advance
            if source != work:
                kept.append(time)
        return moves, source

    moves, _ = reach(length - 1)
    first = [0, *(target for _, target in moves)]
    for step in reversed(range(length)):
        moves, row[step] = reach(step)
        again += moves
        until[step] = len(again)
    again.append((work, work))  # no program reads from an empty table
    first, again = (np.asarray(x, np.int32) for x in (first, again))
    return Schedule(num_states, first, again, until, row)


def _advance(length: int, num_states: int) -> int:
    """How many of ``length`` steps to run before a state is kept, where ``num_states`` may be."""
    if num_states == 1:
        return length - 1

    # States are enough for so many steps if each is run at most so many times.
    def steps(num_states, times):
        return math.comb(num_states + times, num_states) if times >= 0 else 0

    times = 1
    while steps(num_states, times) < length:
        times += 1
    rest = steps(num_states - 1, times)
    return max(1, steps(num_states, times - 2), length - rest)


def scan(
    body: Callable[[PyTree, None], tuple[PyTree, PyTree]],
    state: PyTree,
    length: int,
    num_states: int,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` without inputs, whose backward pass has at most so many states at a time.

    The one that is at work is not counted. Reverse mode may be applied once.
    """
    table = schedule(length, min(num_states, length))
    # Keys lie in the rows as numbers: one that is read again would be taken for one used twice.
    state, with_keys = keys_as_numbers(state)

    def of_numbers(state):
        new, found = body(with_keys(state), None)
        new, _ = keys_as_numbers(new)
        return new, found

    step, closed, _ = hoisted(of_numbers, state)

    @jax.custom_vjp
    def run(closed, state):
        results, _ = _forward(step, table, closed, state)
        return results

    def forward(closed, state):
        parts = partition(closed, among=_is_moving)
        moving, fixed, state = jax.tree.map(lambda x: x.value, (*parts, state))
        results, rows = _forward(step, table, combine(moving, fixed), state)
        return results, (moving, fixed, rows)

    def backward(residuals, cotangents):
        inexact, _ = partition(cotangents, among=is_inexact)
        inexact = jax.tree.map(_instantiated, inexact)
        return _backward(step, table, *residuals, *inexact)

    # Of what is not differentiated, such as images, no cotangents are summed.
    run.defvjp(forward, backward, symbolic_zeros=True)
    state, found = run(closed, state)
    return with_keys(state), found


def _forward(
    step: Callable,
    table: Schedule,
    closed: list[Array],
    state: PyTree,
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """The results of the loop, and the rows."""

    def advance(carry, row):
        state, rows = carry
        new, found = step(closed, state)
        return (new, _with_row(rows, row, state)), found

    num_rows = table.num_states + 1
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_rows, *x.shape)), state)
    (state, rows), found = lax.scan(advance, (state, rows), table.first)
    return (state, found), rows


def _backward(
    step: Callable,
    table: Schedule,
    moving: list[Array | None],
    fixed: list[Array | None],
    rows: PyTree,
    of_state: PyTree,
    of_found: PyTree,
) -> tuple[list[Array | None], PyTree]:
    """The cotangents of what is ``moving`` among the constants, and of the first state."""
    again = jnp.asarray(table.again)

    def advance(i, rows):
        source, target = again[i]
        new, _ = step(combine(moving, fixed), _row(rows, source))
        return _with_row(rows, target, new)

    def differentiate(carry, now):
        rows, of_moving, of_state, begin = carry
        row, until, of_found = now
        rows = lax.fori_loop(begin, until, advance, rows)
        state, others = partition(_row(rows, row), among=is_inexact)

        def inexact_step(moving, state):
            result = step(combine(moving, fixed), combine(state, others))
            inexact, _ = partition(result, among=is_inexact)
            return inexact

        _, pull = jax.vjp(inexact_step, moving, state)
        change, of_state = pull((of_state, of_found))
        of_moving = jax.tree.map(jnp.add, of_moving, change)
        return (rows, of_moving, of_state, until), None

    nothing = jax.tree.map(jnp.zeros_like, moving)
    carry = (rows, nothing, of_state, 0)
    steps = (table.row, table.until, of_found)
    carry, _ = lax.scan(differentiate, carry, steps, reverse=True)
    _, of_moving, of_state, _ = carry
    return of_moving, of_state


def _row(rows: PyTree, index: Array) -> PyTree:
    def read(x):
        return lax.dynamic_index_in_dim(x, index, keepdims=False)

    return jax.tree.map(read, rows)


def _with_row(rows: PyTree, index: Array, state: PyTree) -> PyTree:
    def written(x, new):
        return lax.dynamic_update_index_in_dim(x, new, index, axis=0)

    return jax.tree.map(written, rows, state)


def _is_moving(x: CustomVJPPrimal) -> bool:
    """Whether there is a derivative by it."""
    return x.perturbed and is_inexact(x.value)


def _instantiated(x: Array | SymbolicZero) -> Array:
    return x if isinstance(x, jax.Array) else lax.full_like(x, 0)  # pyright: ignore[reportArgumentType]
