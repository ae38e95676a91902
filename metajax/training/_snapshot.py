"""One snapshot of a run as the bytes of one npz file, with a description and a digest.

The members of the file are the arrays, called ``0``, ``1``, ..., so that their names may hold
anything; ``description``, a JSON text that names them; and ``sha256``, over all the others.
"""

import hashlib
import io
import json
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.sharding import _hosts as hosts
from metajax.types import PyTree

_FORMAT = 2

Members = dict[str, np.ndarray]


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: the meta-step it was made at.
      tree: a pytree of arrays, typed keys among them; its structure, shapes and dtypes must fit on
        loading.
      arrays: NumPy arrays of any shape by name, such as the history, which grows.
    """

    step: int
    tree: PyTree
    arrays: dict[str, np.ndarray]


class Description(NamedTuple):
    """What a file says of itself.

    Attributes:
      format: the version of this layout.
      tag: the version of what is learned.
      step: the meta-step.
      tree: ``dtype[shape]`` of each leaf by its path, ``key<...>[shape]`` of a typed key.
      layout: name, dtype and shape of each array, in the order of the members.
    """

    format: int
    tag: str
    step: int
    tree: dict[str, str]
    layout: list[tuple[str, str, list[int]]]


class RefusedError(ValueError):
    """A whole file, but of another version of metajax, or of another run."""


def pack(snapshot: Snapshot, tag: str) -> Members:
    """The members of the file, but for the digest; all of them copies."""
    leaves = _leaves_by_path(snapshot.tree)
    arrays = {f"tree/{name}": _key_data(x) for name, x in leaves.items()}
    for name, x in snapshot.arrays.items():
        arrays[f"arrays/{name}"] = x
    copies = {name: np.array(x, order="C") for name, x in arrays.items()}
    for name, x in copies.items():
        _check_comes_back(name, x)

    description = Description(
        format=_FORMAT,
        tag=tag,
        step=snapshot.step,
        tree={name: _describe(x) for name, x in leaves.items()},
        layout=[(name, x.dtype.name, list(x.shape)) for name, x in copies.items()],
    )
    text = json.dumps(description._asdict()).encode()
    members = {str(i): x for i, x in enumerate(copies.values())}
    return {"description": np.frombuffer(text, np.uint8), **members}


def write(file: BinaryIO, members: Members) -> None:
    """Writes what `pack` has made, and its digest."""
    np.savez(file, sha256=_digest(members), **members)  # pyright: ignore[reportArgumentType]


def read(data: bytes) -> tuple[Description, dict[str, np.ndarray]]:
    """What the bytes of a file say of themselves, and the arrays by name.

    Runs no code from the file.

    Raises:
      RefusedError: the file is whole, and of another version.
      Exception: of whatever kind, the file is damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    digest = members.pop("sha256")
    if digest.tobytes() != _digest(members).tobytes():
        raise ValueError("its contents do not match their digest")

    fields = json.loads(members.pop("description").tobytes())
    if fields["format"] != _FORMAT:
        raise RefusedError(
            f"has the format {fields['format']}, this version of metajax reads {_FORMAT}"
        )
    description = Description(**fields)
    return description, _named_arrays(description, members)


def unpack(
    description: Description, arrays: dict[str, np.ndarray], like: PyTree, tag: str
) -> Snapshot:
    """The snapshot, its tree like ``like``; an error where it is of another run."""
    if description.tag != tag:
        raise RefusedError(
            f"has the tag {description.tag!r}, want {tag!r}; give another directory, or the same "
            f"tag"
        )
    leaves = _leaves_by_path(like)
    wanted = {name: _describe(x) for name, x in leaves.items()}
    _check_same_tree(description.tree, wanted)

    restored = [_like(arrays[f"tree/{name}"], x) for name, x in leaves.items()]
    tree = jax.tree.unflatten(jax.tree.structure(like), restored)
    others = {
        name.removeprefix("arrays/"): x for name, x in arrays.items() if name.startswith("arrays/")
    }
    return Snapshot(description.step, tree, others)


def _digest(members: Members) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(name.encode())
        digest.update(members[name].reshape(-1).view(np.uint8))
    return np.frombuffer(digest.digest(), np.uint8)


def _named_arrays(description: Description, members: Members) -> dict[str, np.ndarray]:
    """The arrays as the description has them: NumPy's format forgets names such as bfloat16."""
    arrays = {}
    for i, (name, dtype, shape) in enumerate(description.layout):
        arrays[name] = members[str(i)].view(dtype)
        if list(arrays[name].shape) != shape:
            raise ValueError(f"its description does not fit its array {name}")
    for name, kind in description.tree.items():
        x = arrays[f"tree/{name}"]
        if not kind.startswith("key<") and kind != _describe(x):
            raise ValueError(f"its description does not fit its array {name}")
    return arrays


def _check_comes_back(name: str, x: np.ndarray) -> None:
    is_number = jnp.issubdtype(x.dtype, np.number) or x.dtype == np.bool_
    if not is_number or not x.dtype.isnative:
        raise TypeError(
            f"{name} has the dtype {x.dtype}, which would not come back from a checkpoint; make it "
            f"numbers in the byte order of this machine, or leave it out"
        )


def _check_same_tree(got: dict[str, str], want: dict[str, str]) -> None:
    differences = []
    for name in sorted(got.keys() | want.keys()):
        kind = got.get(name, "nothing")
        wanted = want.get(name, "nothing")
        if kind != wanted:
            differences.append(f"  {name}: got {kind}, want {wanted}")
    if not differences:
        return
    shown = "\n".join(differences[:8])
    more = f"\n  and {len(differences) - 8} more" if len(differences) > 8 else ""
    raise RefusedError(
        f"is of another run: give another directory, or train what it was made for\n{shown}{more}"
    )


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError("the tree of a snapshot has two leaves of one path; rename one")
    return named


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _describe(x: Any) -> str:
    return _checks.describe(x if hasattr(x, "dtype") else np.asarray(x))


def _like(x: np.ndarray, like: Any) -> Any:
    """The values ``x`` as what ``like`` is, and where it is."""
    if not isinstance(like, (jax.Array, jax.ShapeDtypeStruct)):
        return x  # a NumPy array, whose dtype JAX may not have
    array = jnp.array(x)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return hosts.put(array, like.sharding) if getattr(like, "committed", False) else array
