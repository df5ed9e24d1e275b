"""Turn the seed or keys of a request into one JAX key per image.

The noise of an image is a function of its own key, so an image does not depend on the batch that it
was made in. A single seed gives each image a key of its own by folding in the image's number; a
list of seeds or keys names the key of every image.
"""

from __future__ import annotations

from functools import partial
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate.checks import RequestError, is_whole, refuse, show
from diffjax.types import Array

SEEDS = 2**32
_FORMS = "a seed in [0, 2^32), a JAX key, or a list with one of these per image"


def check_key(key: object, count: int) -> None:
    """Check that there is one seed or key, or one for each of ``count`` images.

    Raises:
        RequestError: the value is something else, there are more or fewer keys than images, or a
            seed does not fit into 32 bits.
    """
    _read_keys(key, count)


def make_keys(key: object, count: int) -> jax.Array:
    """Return typed JAX keys of shape (count,), one per image.

    Args:
        key: a seed in [0, 2^32) or a JAX key, into which the number of the image is folded; or a
            list or array with one seed or key per image, which are used directly.
        count: number of images.

    Raises:
        RequestError: see `check_key`.
    """
    read = _read_keys(key, count)
    if isinstance(read, list):
        return jnp.stack([_make_key(one) for one in read])
    made = _make_key(read)
    return made if made.ndim else jax.vmap(partial(jax.random.fold_in, made))(jnp.arange(count))


def _read_keys(key: object, count: int) -> int | Array | list[int | Array]:
    """Check a value and return it as a seed or key, an array of keys, or a list of seeds and keys.

    A NumPy array of two uint32 is refused: it may be a raw key of JAX or a list of two seeds.

    Raises:
        RequestError: see `check_key`.
    """
    read: Array | list[int | Array]
    if _is_one(key):
        return _check_one("key", key)
    if _is_batch(key):
        read = key
    elif isinstance(key, list | tuple | range):
        read = [_check_one(f"key[{k}]", one) for k, one in enumerate(key)]
    elif isinstance(key, np.ndarray | jax.Array) and key.ndim == 1 and key.dtype.kind in "iu":
        if isinstance(key, np.ndarray) and _is_raw(key, 1):
            raise refuse(
                "key",
                "may be a raw key or a list of seeds, since it is an array of uint32 "
                f"{key.shape}: give jax.random.wrap_key_data(key), or key.tolist()",
            )
        read = [_check_one(f"key[{k}]", one) for k, one in enumerate(key.tolist())]
    else:
        hint = "; for a seed by chance take random.randrange(2**32)" if key is None else ""
        raise refuse("key", f"must be {_FORMS}, got {show(key)}{hint}")
    if len(read) != count:
        raise RequestError("key", f"there are {count} images, but {len(read)} keys or seeds")
    return read


def _is_typed(key: object) -> TypeGuard[jax.Array]:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _find_key_length() -> int:
    """Return the length of a raw key of JAX's default generator."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]


def _is_raw(key: object, ndim: int) -> TypeGuard[np.ndarray | jax.Array]:
    """Return whether a value is an array of raw keys (uint32), as `jax.random.PRNGKey` makes
    them.
    """
    if not isinstance(key, np.ndarray | jax.Array) or key.dtype != np.uint32:
        return False
    return key.ndim == ndim and key.shape[-1] == _find_key_length()


def _is_batch(key: object) -> TypeGuard[Array]:
    return (_is_typed(key) and key.ndim == 1) or _is_raw(key, 2)


def _is_one(key: object) -> bool:
    """Return whether a value is one seed or one key.

    A NumPy array is never one raw key, because it could be a list of seeds as well.
    """
    return (
        is_whole(key)
        or (_is_typed(key) and not key.ndim)
        or (isinstance(key, jax.Array) and _is_raw(key, 1))
    )


def _check_one(name: str, key: object) -> int | Array:
    """Return one seed as an int, or one key as it is.

    Raises:
        RequestError: the value is neither, or the seed does not fit into 32 bits.
    """
    if is_whole(key):
        if not 0 <= int(key) < SEEDS:  # JAX would take the lower 32 bits
            raise RequestError(name, f"{name}: seeds must lie in [0, 2^32), got {show(int(key))}")
        return int(key)
    if (_is_typed(key) and not key.ndim) or _is_raw(key, 1):
        return key
    raise refuse(name, f"must be a seed (a whole number) or a JAX key, got {show(key)}")


def _make_key(key: int | Array) -> jax.Array:
    """Return the typed key of a seed or of a raw key."""
    if _is_typed(key):
        return key
    if isinstance(key, int):
        return jax.random.key(key)
    return jax.random.wrap_key_data(jnp.asarray(key))
