"""Device and versions, to stand beside every figure."""

import importlib.metadata
import os
import platform

import jax


def machine() -> dict:
    """The device, the processor's cores and the versions of what computes."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("metajax", "jax", "optax", "evosax", "flax")
            },
        },
    }
