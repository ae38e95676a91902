"""A mesh of devices, and what is divided over it."""

import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metajax import _checks
from metajax.sharding import _hosts as hosts
from metajax.types import Inner, InnerState, PyTree, TrainState, vmap


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 60,
    **options: Any,
) -> None:
    """`jax.distributed.initialize` with an end: when one process dies, the others stop instead of
    waiting for it.

    JAX leaves the survivors waiting up to 100 s for a heartbeat and then up to 300 s at exit. Here
    each process that misses another for ``timeout`` seconds ends with an error, and so a launcher
    can start all of them again. Call it before anything else that uses JAX. With
    ``num_processes=1`` it does nothing, so that one script serves both. SIGTERM goes on to do what
    it did before, while JAX alone would ignore it: it ends the process, or, within `metajax.fit`
    with a ``checkpoint``, saves on all hosts and ends them all.

    Args: coordinator_address: ``"host:port"`` of process 0, any free port. On SLURM, Open MPI, GKE
      and TPU pods JAX finds this and the next two itself; leave them out. num_processes: how many
      processes there are. process_id: which one this is, from 0. timeout: seconds without a sign of
      life after which a process counts as dead, and the longest wait at exit; also the longest wait
      for the others at the start, where one minute is the least. options: others of
      `jax.distributed.initialize`.

    Raises:
      TypeError, ValueError: bad arguments.
      RuntimeError: called twice, or after JAX was used.

    >>> import metajax as mx
    >>> mx.sharding.initialize(num_processes=1)  # a single process: nothing to do
    """
    _checks.positive_int(timeout=timeout)
    if num_processes is not None:
        _checks.positive_int(num_processes=num_processes)
        if num_processes == 1:
            return
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be from 0 to num_processes - 1 = {num_processes - 1}, got {process_id}"
        )
    if coordinator_address is not None and ":" not in str(coordinator_address):
        raise ValueError(
            f'coordinator_address must be "host:port", e.g. "10.0.0.1:1234", got {coordinator_address!r}'
        )
    defaults: dict[str, Any] = {
        "heartbeat_timeout_seconds": timeout,
        "shutdown_timeout_seconds": timeout,
        "initialization_timeout": max(timeout, 60),
    }
    jax.distributed.initialize(
        coordinator_address, num_processes, process_id, **(defaults | options)
    )
    # JAX has put in its place a handler that notes SIGTERM for its preemption service and else
    # ignores it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def mesh(num_devices: int | None = None, axis: str = "tasks") -> Mesh:
    """A mesh of one axis over the first ``num_devices`` devices, by default over all devices of all
    hosts.

    Raises:
      ValueError: more devices than there are, or some of several hosts' devices.

    >>> import metajax as mx
    >>> mx.sharding.mesh(1).axis_names
    ('tasks',)
    """
    devices = jax.devices()
    if num_devices is not None:
        _checks.positive_int(num_devices=num_devices)
        if num_devices > len(devices):
            raise ValueError(
                f"num_devices is {num_devices} and there are {len(devices)}; take fewer, or simulate them on a CPU "
                f"with XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
            )
        if num_devices < len(devices) and jax.process_count() > 1:
            raise ValueError(
                f"num_devices must be left out where there are several processes, since each must own a part of the "
                f"mesh; got {num_devices} of {len(devices)}"
            )
    return Mesh(np.asarray(devices[:num_devices]), (axis,), axis_types=(AxisType.Auto,))


def split(inner: Inner, mesh: Mesh, axis: str = "tasks") -> Inner:
    """The same inner loop, whose episodes are divided over ``axis`` of ``mesh``.

    The results are those of one device but for the order in which sums are taken.

    Args:
      inner: from `metajax.inner`.
      mesh: from `mesh`, or any `jax.sharding.Mesh` whose axes are of the type Auto.
      axis: the axis of the mesh.

    Raises: TypeError, ValueError: another type, a mesh without that axis or with Explicit axes, an
      inner loop that is split already; and, when it is run, a number of tasks or members that the
      devices do not divide.

    >>> import jax, metajax as mx, optax
    >>> mesh = mx.sharding.mesh()
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(mx.sharding.split(loop, mesh), num_tasks=4), optax.adam(1e-3))
    >>> state = mx.sharding.place(trainer.init(jax.random.key(0), jax.numpy.float32(0.01)), mesh)
    >>> result = mx.fit(trainer, state, num_steps=2, progress=False)
    """
    _checks.instance(Inner, inner=inner)
    _mesh(mesh, axis)
    if inner.vmap is not vmap:
        raise ValueError("inner is split already; split the one made by metajax.inner, once")
    return inner._replace(vmap=partial(_vmap, mesh, axis))


def _vmap(mesh: Mesh, axis: str, f: Callable, in_axes: Any = 0, *, whole: bool = False) -> Callable:
    """`jax.vmap` over a leading axis that is divided over the devices; ``in_axes`` is 0 or None for
    each argument.
    """

    def share(*args, axes):
        out = jax.vmap(f, axes)(*args)
        return jax.tree.map(lambda x: lax.all_gather(x, axis, tiled=True), out) if whole else out

    def call(*args):
        args = jax.tree.map(jnp.asarray, args)
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        size = next(
            x.shape[0]
            for a, arg in zip(axes, args, strict=True)
            if a == 0
            for x in jax.tree.leaves(arg)
        )
        if size % mesh.shape[axis]:
            raise ValueError(_indivisible(size, mesh.shape[axis], axis))
        for x in jax.tree.leaves(args):
            _same_mesh(x, mesh)
        specs = tuple(PartitionSpec() if a is None else PartitionSpec(axis) for a in axes)
        # Unchecked, for learners may start a scan with constants and end it with what differs
        # between devices.
        run = jax.shard_map(
            partial(share, axes=axes),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec() if whole else PartitionSpec(axis),
            check_vma=False,
        )
        return run(*args)

    return call


def place(tree: PyTree, mesh: Mesh, axis: str = "tasks") -> PyTree:
    """Puts a state or data on the mesh: episodes split over ``axis``, all the rest whole on every
    device.

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

    Raises: TypeError, ValueError: a mesh without that axis, or a number of episodes that the
      devices do not divide.

    >>> import jax, metajax as mx
    >>> data = mx.sharding.place(mx.data.load("digits"), mx.sharding.mesh())
    >>> data["image"].sharding.is_fully_replicated
    True
    """
    _mesh(mesh, axis)
    whole, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))

    def visit(node):
        sizes = _sizes(node)
        for size in sizes:
            if size % mesh.shape[axis]:
                raise ValueError(_indivisible(size, mesh.shape[axis], axis))
        if not sizes:
            return hosts.put(node, whole)
        if isinstance(node, InnerState):
            return jax.tree.map(lambda x: hosts.put(x, parts), node)
        return type(node)(*(put(child, sizes) for child in node))

    def put(tree, sizes=()):
        leaves = jax.tree.leaves(tree)
        if sizes and leaves and all(jnp.ndim(x) and x.shape[0] in sizes for x in leaves):
            return jax.tree.map(lambda x: hosts.put(x, parts), tree)
        return jax.tree.map(visit, tree, is_leaf=lambda node: bool(_sizes(node)))

    return put(tree)


def gather(tree: PyTree) -> PyTree:
    """The whole of every array on this host, off the mesh: to save it, to plot it, or to `place` it
    on another mesh.

    On several hosts all of them must call it, and each gets all of it.

    >>> import jax, metajax as mx
    >>> placed = mx.sharding.place({"rate": jax.numpy.float32(0.5)}, mx.sharding.mesh())
    >>> mx.sharding.gather(placed)
    {'rate': Array(0.5, dtype=float32)}
    """

    def fetch(x):
        if not isinstance(x, jax.Array):
            return x
        return hosts.map_key_data(lambda x: jnp.asarray(np.asarray(x)), hosts.gathered(x))

    return jax.tree.map(fetch, tree)


# Placing.


def _mesh(mesh: Any, axis: str) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh as made by metajax.sharding.mesh, got {type(mesh).__name__}"
        )
    if axis not in mesh.shape:
        raise ValueError(f"axis must be one of the mesh's axes {list(mesh.shape)}, got {axis!r}")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh must have axes of the type Auto, got {mesh.axis_types}; use metajax.sharding.mesh, or "
            f"jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
        )


def _sizes(node: Any) -> list[int]:
    """How many episodes the InnerState holds, or those that this NamedTuple of an estimator
    holds.
    """
    if isinstance(node, InnerState):
        return [node.t.shape[0]] if jnp.ndim(node.t) else []
    if isinstance(node, TrainState) or not (isinstance(node, tuple) and hasattr(node, "_fields")):
        return []
    return [n for child in node if isinstance(child, InnerState) for n in _sizes(child)]


def _indivisible(size: int, devices: int, axis: str) -> str:
    near = max(devices, size // devices * devices)
    return (
        f"{size} episodes cannot be split evenly over the {devices} devices on the axis {axis!r} of mesh; "
        f"take num_tasks (of ask_tell: the population) a multiple of {devices}, e.g. {near}, or a mesh of fewer devices"
    )


def _same_mesh(x: Any, mesh: Mesh) -> None:
    """Says that an argument lies on another mesh; what lies on no mesh goes anywhere."""
    other = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    if other is None or other.empty or not all(kind == AxisType.Auto for kind in other.axis_types):
        return
    if dict(other.shape) != dict(mesh.shape):
        raise ValueError(
            f"state, meta_params or data lie on another mesh, {dict(other.shape)}, than the inner loop was split over, "
            f"{dict(mesh.shape)}; move them with metajax.sharding.place(tree, mesh)"
        )
