"""All public functions, for the tests that hold for each of them."""

import inspect

import metajax as mx

_MODULES = [mx, *(x for x in map(mx.__dict__.get, mx.__all__) if inspect.ismodule(x))]
FUNCTIONS = {
    f"{module.__name__}.{name}": value
    for module in _MODULES
    for name, value in vars(module).items()
    if not name.startswith("_")
    and inspect.isfunction(value)
    and value.__module__.startswith("metajax")
    if name in module.__dict__.get("__all__", [name])
    and (hasattr(module, "__all__") or value.__module__ == module.__name__)
}
