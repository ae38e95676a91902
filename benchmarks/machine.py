"""Device and versions, to stand beside every figure."""

import importlib.metadata
import os
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """The device, the processor's cores and the versions of what computes."""
    versions = {"python": platform.python_version()}
    for name in ("metajax", "jax", "optax", "evosax", "flax"):
        versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
