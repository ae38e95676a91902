"""A mesh of devices, and what is divided over it."""

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metajax import _checks, _rehearsal
from metajax._arguments import NonNegativeInt, PositiveInt, check, checked
from metajax._vmap import vmap
from metajax.sharding import _hosts as hosts
from metajax.types import Array, Inner, InnerState, PyTree, TrainState


@checked
def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: PositiveInt = 60,
    **options: Any,
) -> None:
    """`jax.distributed.initialize`, and when one process dies the others stop instead of waiting.

    JAX leaves the survivors waiting up to 100 s for a heartbeat and then up to 300 s at exit. Here
    each process that misses another for ``timeout`` seconds ends with an error, and so a launcher
    can start all of them again. Call it before anything else that uses JAX. With
    ``num_processes=1`` it does nothing, so that one script serves both.

    SIGTERM goes on to do what it did before, while JAX alone would ignore it: it ends the process,
    or, within `metajax.fit` with a ``checkpoint``, saves on all hosts and ends them all.

    Args:
      coordinator_address: ``"host:port"`` of process 0, any free port. On SLURM, Open MPI, GKE and
        TPU pods JAX finds this and the next two itself; leave them out.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
      timeout: seconds without a sign of life after which a process counts as dead, and the longest
        wait at exit; also the longest wait for the others at the start, where one minute is the
        least.
      **options: others of `jax.distributed.initialize`.

    Raises:
      RuntimeError: called twice, or after JAX was used.

    >>> import metajax as mx
    >>> mx.sharding.initialize(num_processes=1)  # a single process: nothing to do
    """
    _check_processes(coordinator_address, num_processes, process_id)
    if num_processes == 1:
        return

    defaults: dict[str, Any] = {
        "heartbeat_timeout_seconds": timeout,
        "shutdown_timeout_seconds": timeout,
        "initialization_timeout": max(timeout, 60),
    }
    options = defaults | options
    jax.distributed.initialize(
        coordinator_address, num_processes, process_id, **options
    )
    _restore_sigterm()


def _restore_sigterm() -> None:
    # JAX lets its preemption service handle SIGTERM, which notes it and otherwise ignores it.
    # Python still knows the handler before that; setting it once more puts it back.
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


@checked
def mesh(num_devices: PositiveInt | None = None, axis: str = "tasks") -> Mesh:
    """A mesh of one axis over the first ``num_devices`` devices, by default over all of all hosts.

    Raises:
      ValueError: more devices than there are, or some of several hosts' devices.

    >>> import metajax as mx
    >>> mx.sharding.mesh(1).axis_names
    ('tasks',)
    """
    devices = jax.devices()
    if num_devices is None:
        num_devices = len(devices)
    _check_num_devices(num_devices, len(devices))
    grid = np.asarray(devices[:num_devices])
    return Mesh(grid, (axis,), axis_types=(AxisType.Auto,))


@checked
def split(inner: Inner, mesh: Mesh, axis: str = "tasks") -> Inner:
    """The same inner loop, whose episodes are divided over ``axis`` of ``mesh``.

    The results are those of one device but for the order in which sums are taken.

    Args:
      inner: from `metajax.inner`.
      mesh: from `mesh`, or any `jax.sharding.Mesh` whose axes are of the type Auto.
      axis: the axis of the mesh.

    Raises:
      ValueError: a mesh without that axis or with Explicit axes; an inner loop that is split
        already; and, when it is run, a number of tasks or members that the devices do not divide.

    >>> import jax, metajax as mx, optax
    >>> mesh = mx.sharding.mesh()
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(mx.sharding.split(loop, mesh), num_tasks=4), optax.adam(1e-3))
    >>> state = mx.sharding.place(trainer.init(jax.random.key(0), jax.numpy.float32(0.01)), mesh)
    >>> result = mx.fit(trainer, state, num_steps=2, progress=None)
    """
    _check_mesh(mesh, axis)
    if inner.vmap is not vmap:
        raise ValueError(
            "inner is split already, or takes turns; split the one made by metajax.inner, once, "
            "and let its episodes take turns after that"
        )
    return replace(inner, vmap=partial(_vmap_over_devices, mesh, axis))


def _vmap_over_devices(
    mesh: Mesh,
    axis: str,
    f: Callable,
    in_axes: Any = 0,
    *,
    whole: bool = False,
    at_once: int | None = None,
) -> Callable:
    """`jax.vmap` over a leading axis that is divided over the devices.

    ``in_axes`` is 0 or None for each argument. With ``whole`` every device gets all results; with
    ``at_once`` each runs no more than so many side by side.
    """
    if _rehearsal.is_under_way():  # devices see tracers, even there
        return jax.vmap(f, in_axes)

    def run(*args):
        args = jax.tree.map(jnp.asarray, args)
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        _check_divisible(_size_of_mapped_axis(args, axes), mesh, axis)
        for x in jax.tree.leaves(args):
            _check_same_mesh(x, mesh)

        def run_share(*args):
            out = vmap(f, axes, at_once=at_once)(*args)
            if not whole:
                return out
            gather_shares = partial(lax.all_gather, axis_name=axis, tiled=True)
            return jax.tree.map(gather_shares, out)

        split = PartitionSpec(axis)
        replicated = PartitionSpec()
        sharded = jax.shard_map(
            run_share,
            mesh=mesh,
            in_specs=tuple(replicated if a is None else split for a in axes),
            out_specs=replicated if whole else split,
            # Learners may start a scan with constants and end it with what differs between devices.
            check_vma=False,
        )
        return sharded(*args)

    return run


@checked
def in_turns(inner: Inner, at_once: PositiveInt) -> Inner:
    """The same inner loop, of whose episodes no more than ``at_once`` run side by side.

    The others run after them: memory is that of ``at_once`` episodes, whatever ``num_tasks`` is.
    Every estimator takes the gradients of a turn before the next, and keeps those; results are the
    same but for rounding. Of a loop that is `split`, ``at_once`` episodes run on each device. Of
    `metajax.ask_tell` it is members of the population, each with all its tasks.

    Turns are even; where they cannot be, the last is a program of its own, and compiling takes
    longer.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.sharding.in_turns(mx.inner(learner, mx.tasks.quadratics(3), horizon=10), 16)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=64), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    return replace(inner, vmap=partial(inner.vmap, at_once=at_once))


def _size_of_mapped_axis(args: tuple, axes: tuple) -> int:
    mapped = [arg for arg, a in zip(args, axes, strict=True) if a == 0]
    first, *_ = jax.tree.leaves(mapped)
    return len(first)


@checked
def place(tree: PyTree, mesh: Mesh, axis: str = "tasks") -> PyTree:
    """Puts a state or data on the mesh: episodes split over ``axis``, the rest whole everywhere.

    Episodes are known by their type, `metajax.InnerState`. An estimator's NamedTuple that holds one
    may hold more for each episode, such as what it accumulates: a field all of whose leaves lead
    with the same number is taken for that. Should that be wrong, no result changes; placement only
    saves the transfers and the second compilation that a state placed otherwise would cost.

    On several hosts each must call it with the same ``tree``, as one key gives it to them or one
    file.

    Args:
      tree: a `metajax.TrainState`, data, or any tree of arrays.
      mesh: where to.
      axis: the axis of the mesh.

    Raises:
      ValueError: a mesh without that axis, or a number of episodes that the devices do not divide.

    >>> import jax, metajax as mx
    >>> data = mx.sharding.place(mx.data.load("digits"), mx.sharding.mesh())
    >>> data["image"].sharding.is_fully_replicated
    True
    """
    _checks.arrays("tree", tree)
    _check_mesh(mesh, axis)
    split = NamedSharding(mesh, PartitionSpec(axis))
    replicated = NamedSharding(mesh, PartitionSpec())
    put_split = partial(hosts.put, sharding=split)
    put_replicated = partial(hosts.put, sharding=replicated)

    def put_node(node):
        counts = _episode_counts(node)
        for count in counts:
            _check_divisible(count, mesh, axis)
        if not counts:
            return put_replicated(node)
        if isinstance(node, InnerState):
            return jax.tree.map(put_split, node)
        # An estimator's NamedTuple: the episodes, and what else it holds for each of them.
        fields = []
        for field in node:
            if _leads_with(counts, field):
                fields.append(jax.tree.map(put_split, field))
            else:
                fields.append(put_tree(field))
        return type(node)(*fields)

    def put_tree(tree):
        return jax.tree.map(put_node, tree, is_leaf=_holds_episodes)

    return put_tree(tree)


def _holds_episodes(node: Any) -> bool:
    return bool(_episode_counts(node))


def _episode_counts(node: Any) -> list[int]:
    """How many episodes an InnerState holds, or each of those in an estimator's NamedTuple.

    None in a single episode, in arrays, and in a TrainState, whose estimator's state is a node of
    its own.
    """
    if isinstance(node, InnerState):
        return list(jnp.shape(node.t)[:1])
    is_named_tuple = isinstance(node, tuple) and hasattr(node, "_fields")
    if not is_named_tuple or isinstance(node, TrainState):
        return []
    counts = []
    for child in node:
        if isinstance(child, InnerState):
            counts += _episode_counts(child)
    return counts


def _leads_with(counts: list[int], tree: PyTree) -> bool:
    """Whether the leading axis of all leaves, of which there is one, is as long as a count."""
    leaves = jax.tree.leaves(tree)
    lengths = {jnp.shape(x)[:1] for x in leaves}
    wanted = {(count,) for count in counts}
    return bool(lengths) and lengths <= wanted


def gather(tree: PyTree) -> PyTree:
    """The whole of every array on this host, off the mesh: to save it, to plot it, or to move it.

    It can be put on another mesh by `place`. On several hosts all of them must call this, and each
    gets all of it.

    >>> import jax, metajax as mx
    >>> placed = mx.sharding.place({"rate": jax.numpy.float32(0.5)}, mx.sharding.mesh())
    >>> mx.sharding.gather(placed)
    {'rate': Array(0.5, dtype=float32)}
    """

    def fetch(x):
        if not isinstance(x, jax.Array):
            return x
        return hosts.map_key_data(_off_the_mesh, hosts.gathered(x))

    return jax.tree.map(fetch, tree)


def _off_the_mesh(x: Array) -> Array:
    return jnp.asarray(np.asarray(x))


# What can be wrong.


def _check_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    # Without these JAX would wait a minute for processes that cannot come.
    if coordinator_address is not None and ":" not in coordinator_address:
        got = repr(coordinator_address)
        raise ValueError(
            f'coordinator_address must be "host:port", e.g. "10.0.0.1:99", got {got}'
        )
    if num_processes is None and process_id is not None:
        raise ValueError("process_id needs num_processes: give both, or neither")
    if num_processes is None:
        return
    check(PositiveInt, num_processes=num_processes)
    if process_id is not None:
        check(NonNegativeInt, process_id=process_id)
    if process_id is not None and process_id >= num_processes:
        raise ValueError(
            f"process_id must be below num_processes, {num_processes}: {process_id}"
        )


@checked
def _check_num_devices(num_devices: PositiveInt, available: int) -> None:
    if num_devices > available:
        raise ValueError(
            f"num_devices is {num_devices} and there are {available}; take fewer, or simulate them "
            f"on a CPU with XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
        )
    if num_devices < available and jax.process_count() > 1:
        raise ValueError(
            "num_devices must be left out with several processes: each owns a part"
        )


def _check_mesh(mesh: Any, axis: str) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be made by metajax.sharding.mesh, got {type(mesh).__name__}"
        )
    if axis not in mesh.shape:
        raise ValueError(
            f"axis must be one of the mesh's axes {list(mesh.shape)}, got {axis!r}"
        )
    if not _all_auto(mesh):
        raise ValueError(
            f"mesh must have axes of the type Auto, got {mesh.axis_types}; make it with "
            f"metajax.sharding.mesh, or with axis_types=(jax.sharding.AxisType.Auto,)"
        )


def _check_divisible(num_episodes: int, mesh: Mesh, axis: str) -> None:
    devices = mesh.shape[axis]
    if num_episodes % devices:
        multiple = max(devices, num_episodes // devices * devices)
        raise ValueError(
            f"{num_episodes} episodes cannot be split evenly over {devices} devices (axis {axis!r} "
            f"of mesh); take num_tasks (of ask_tell: the population) a multiple of {devices}, e.g. "
            f"{multiple}, or a mesh of fewer devices"
        )


def _check_same_mesh(x: Array, mesh: Mesh) -> None:
    """What lies on no mesh goes anywhere."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    other = getattr(sharding, "mesh", None)
    if other is None or other.empty or not _all_auto(other):
        return
    if dict(other.shape) != dict(mesh.shape):
        raise ValueError(
            f"state, meta_params or data lie on another mesh, {dict(other.shape)}, than the inner "
            f"loop, {dict(mesh.shape)}; move them with metajax.sharding.place(tree, mesh)"
        )


def _all_auto(mesh: Any) -> bool:
    return all(kind == AxisType.Auto for kind in mesh.axis_types)
