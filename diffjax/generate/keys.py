"""Seeds and JAX keys of a request, to one key per image."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate.checks import RequestError, is_whole, refuse, show

SEEDS = 2**32
_FORMS = "a seed in [0, 2^32), a JAX key, or a list with one of these per image"


def check_key(key: Any, count: int) -> None:
    """See that there is a seed or key, or one of them for each of ``count`` images.

    Raises:
        RequestError: it is something else, there is another number of keys, or a seed has more
            than 32 bits.
    """
    _read(key, count)


def make_keys(key: Any, count: int) -> jax.Array:
    """One key per image: from a seed or a key by the image's number, or as they are given.

    Raises:
        RequestError: see `check_key`.
    """
    read = _read(key, count)
    if isinstance(read, list):
        return jnp.stack([_make(one) for one in read])
    made = _make(read)
    return made if made.ndim else jax.vmap(partial(jax.random.fold_in, made))(jnp.arange(count))


def _read(key: Any, count: int) -> Any:
    """A checked seed or key, an array of keys, or a list of seeds and keys."""
    read: Any
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


def _is_typed(key: Any) -> bool:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _find_key_length() -> int:
    """Return the length of a raw key of JAX's default generator."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]


def _is_raw(key: Any, ndim: int) -> bool:
    """Whether a value is an array of raw keys, as `jax.random.PRNGKey` makes one."""
    array = isinstance(key, np.ndarray | jax.Array) and key.dtype == np.uint32
    return bool(array) and key.ndim == ndim and key.shape[-1] == _find_key_length()


def _is_batch(key: Any) -> bool:
    return (_is_typed(key) and key.ndim == 1) or _is_raw(key, 2)


def _is_one(key: Any) -> bool:
    return (
        is_whole(key)
        or (_is_typed(key) and not key.ndim)
        or (isinstance(key, jax.Array) and _is_raw(key, 1))
    )


def _check_one(name: str, key: Any) -> Any:
    if not is_whole(key):
        if (_is_typed(key) and not key.ndim) or _is_raw(key, 1):
            return key
        raise refuse(name, f"must be a seed (a whole number) or a JAX key, got {show(key)}")
    if not 0 <= int(key) < SEEDS:  # JAX would take the lower 32 bits
        raise RequestError(name, f"{name}: seeds must lie in [0, 2^32), got {show(int(key))}")
    return int(key)


def _make(key: Any) -> jax.Array:
    if _is_typed(key):
        return key
    if isinstance(key, int):
        return jax.random.key(key)
    return jax.random.wrap_key_data(jnp.asarray(key))
