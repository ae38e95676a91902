"""Accelerators that programs are compiled for on a machine that has none.

JAX compiles against the description of a device; what runs the program need not be there.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from benchmarks.measure import Limits

# As the CUDA plug-in describes the card to XLA.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """A device to compile for.

    Attributes:
      description: arguments of `jax.experimental.topologies.get_topology_desc`.
      extra: what of the package installs the compiler.
      limits: floating-point operations and bytes a second, at best.
      launch: seconds that a kernel takes at least, from one to the next; None where no host
        launches them.
      options: of the compiler.
      otherwise: options beside these with which a program is compiled that fails without.
    """

    description: Mapping[str, str]
    extra: str
    limits: Limits
    launch: float | None
    options: Mapping[str, Any]
    otherwise: Mapping[str, Any]


class UnavailableError(RuntimeError):
    """Nothing here can compile for the target; the message says what to install."""


TARGETS = {
    # Float32 without tensor cores: two a multiply-add, cores, lanes, clock. The time of a launch:
    # an H200 took 3.2 and 2.8 microseconds for each of MAML's and iMAML's.
    "h100": Target(
        {
            "platform": "cuda",
            "topology_name": "",
            "target_config": _H100,
            "topology": "1x1x1",
        },
        "aot-gpu",
        Limits(2 * 132 * 128 * 1.98e9, 3.35232e12),
        3e-6,
        # To try variants of a kernel needs the card.
        {"xla_gpu_autotune_level": 0},
        # Without trying it may settle on a tiling of a product that there is none of.
        {"xla_gpu_enable_triton_gemm": False},
    ),
    # As its maker states them, for products of bfloat16, which float32 is rounded to by default.
    "tpu-v5e": Target(
        {"platform": "tpu", "topology_name": "v5e:2x2"},
        "aot-tpu",
        Limits(197e12, 819e9),
        None,
        {},
        {},
    ),
}
# The smallest of each kind, a host's chips. No function of JAX names them.
_TOPOLOGIES = (
    "v2:2x2",
    "v3:2x2",
    "v4:2x2x1",
    "v5e:2x2",
    "v5e:16x16",
    "v5p:2x2x1",
    "v6e:2x2",
    "tpu7x:2x2x1",
)


def target(name: str) -> Target:
    """One of `TARGETS`.

    Raises:
      ValueError: it is none.
    """
    if name not in TARGETS:
        raise ValueError(
            f"--for {name}: no such target, choose of {', '.join(TARGETS)}"
        )
    return TARGETS[name]


def devices(name: str, **description: str) -> list[Any]:
    """The devices of a target, none of which needs to be here.

    Args:
      name: of the target.
      **description: in place of parts of its own.

    Raises:
      UnavailableError: no compiler for it, or one that does not fit the installed JAX.
    """
    _look_for_no_tpu()
    found = target(name)
    remedy = f"pip install --upgrade 'metajax[{found.extra}]'"
    try:
        topology = topologies.get_topology_desc(**{**found.description, **description})
    except (ImportError, NotImplementedError, RuntimeError, TypeError) as e:
        # Without the plug-in JAX has no such platform, with a broken one it fails to load, and an
        # older JAX asks for other arguments; which it was is in the message.
        lines = str(e).splitlines() or [type(e).__name__]
        raise UnavailableError(
            f"{name}: JAX {jax.__version__} finds no compiler for it ({lines[0]}); {remedy}"
        ) from e
    return topology.devices


def known_topologies() -> list[str]:
    """The TPUs that the installed compiler can be asked for; none without it."""
    known = []
    for name in _TOPOLOGIES:
        try:
            devices("tpu-v5e", topology_name=name)
        except UnavailableError:
            continue
        known.append(name)
    return known


def _look_for_no_tpu() -> None:
    """The compiler asks a cloud's server, and the environment, which TPU it is on."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    # It would let one process in at a time, for the sake of a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
