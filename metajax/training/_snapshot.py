"""One snapshot of a run as the bytes of one npz file, with a description and a digest.

The members of the file are the arrays by name, ``tree/...`` and ``arrays/...``, percent-encoded;
``description``, a JSON text; and ``sha256``, over all the others.
"""

import io
import json
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.io import digest
from metajax.sharding import _hosts as hosts
from metajax.types import PyTree

_FORMAT = 2

Arrays = dict[str, np.ndarray]


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
    arrays: Arrays


class Description(NamedTuple):
    """What a file says of itself.

    Attributes:
      format: the version of this layout.
      tag: the version of what is learned.
      step: the meta-step.
      tree: ``dtype[shape]`` of each leaf by its path, ``key<...>[shape]`` of a typed key.
      dtypes: the dtype of each array, since NumPy's format forgets those such as bfloat16.
    """

    format: int
    tag: str
    step: int
    tree: dict[str, str]
    dtypes: dict[str, str]


class RefusedError(ValueError):
    """A whole file, but of another version of metajax, or of another run."""


def pack(snapshot: Snapshot, tag: str) -> Arrays:
    """The members of the file, but for the digest; all of them copies."""
    leaves = _leaves_by_path(snapshot.tree)
    arrays = {}
    for name, x in leaves.items():
        arrays[f"tree/{name}"] = _copy(
            name, jax.random.key_data(x) if _is_key(x) else x
        )
    for name, x in snapshot.arrays.items():
        arrays[f"arrays/{name}"] = _copy(name, x)

    description = Description(
        format=_FORMAT,
        tag=tag,
        step=snapshot.step,
        tree=_describe_all(leaves),
        dtypes={name: x.dtype.name for name, x in arrays.items()},
    )
    text = json.dumps(description._asdict()).encode()
    members = {"description": np.frombuffer(text, np.uint8)}
    for name, x in arrays.items():
        # A backslash or a zero byte would not survive in the names of a zip file.
        members[quote(name)] = x
    return members


def write(file: BinaryIO, members: Arrays) -> None:
    """Writes what `pack` has made, and its digest."""
    sha256 = np.frombuffer(digest(members), np.uint8)
    with_digest: dict[str, Any] = {"sha256": sha256, **members}
    np.savez(file, **with_digest)


def read(data: bytes) -> tuple[Description, Arrays]:
    """What the bytes of a file say of themselves, and the arrays by name.

    Runs no code from the file.

    Raises:
      RefusedError: the file is whole, and of another version.
      Exception: of whatever kind, the file is damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        members = dict(file)
    sha256 = members.pop("sha256")
    if sha256.tobytes() != digest(members):
        raise ValueError("its contents do not match their digest")

    fields = json.loads(members["description"].tobytes())
    if fields["format"] != _FORMAT:
        raise RefusedError(
            f"has the format {fields['format']}, this version of metajax reads {_FORMAT}"
        )
    description = Description(**fields)
    arrays = {}
    for name, dtype in description.dtypes.items():
        arrays[name] = members[quote(name)].view(dtype)

    for name, kind in description.tree.items():
        is_key = kind.startswith("key<")
        if not is_key and kind != _checks.describe(arrays[f"tree/{name}"]):
            raise ValueError(f"its description does not fit its array {name}")
    return description, arrays


def unpack(
    description: Description, arrays: Arrays, like: PyTree, tag: str
) -> Snapshot:
    """The snapshot, its tree like ``like``.

    Raises:
      RefusedError: it is of another run; the message names each difference.
    """
    if description.tag != tag:
        raise RefusedError(
            f"has the tag {description.tag!r}, want {tag!r}; give another directory, or the same "
            f"tag"
        )
    leaves = _leaves_by_path(like)
    _check_same_tree(description.tree, _describe_all(leaves))

    restored = [_restore(arrays[f"tree/{name}"], x) for name, x in leaves.items()]
    tree = jax.tree.unflatten(jax.tree.structure(like), restored)
    others = {}
    for name, x in arrays.items():
        if name.startswith("arrays/"):
            others[name.removeprefix("arrays/")] = x
    return Snapshot(description.step, tree, others)


def _copy(name: str, x: Any) -> np.ndarray:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it")
    copy = np.array(x, order="C")
    is_number = jnp.issubdtype(copy.dtype, np.number) or copy.dtype == np.bool_
    if not is_number or not copy.dtype.isnative:
        raise TypeError(
            f"{name} has the dtype {copy.dtype}, which would not come back from a checkpoint; make "
            f"it numbers in the byte order of this machine, or leave it out"
        )
    return copy


def _restore(x: np.ndarray, like: Any) -> Any:
    """The values ``x`` as what ``like`` is, and where it is."""
    if not isinstance(like, (jax.Array, jax.ShapeDtypeStruct)):
        # A NumPy array, whose dtype JAX may not have.
        return x
    array = jnp.array(x)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))  # pyright: ignore[reportArgumentType]
    if getattr(like, "committed", False):
        array = hosts.put(array, like.sharding)
    return array


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
    num_more = len(differences) - 8
    more = f"\n  and {num_more} more" if num_more > 0 else ""
    raise RefusedError(
        f"is of another run: give another directory, or train what it was made for\n{shown}{more}"
    )


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {}
    for path, x in leaves:
        named[jax.tree_util.keystr(path, simple=True, separator="/")] = x
    if len(named) != len(leaves):
        raise ValueError(
            "the tree of a snapshot has two leaves of one path; rename one"
        )
    return named


def _describe_all(leaves: dict[str, Any]) -> dict[str, str]:
    described = {}
    for name, x in leaves.items():
        described[name] = _checks.describe(x if hasattr(x, "dtype") else np.asarray(x))
    return described


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
