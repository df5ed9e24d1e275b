"""Fused attention: which kernel a device has for which shapes, and how it is called on a mesh.

A fused kernel never writes the scores (B, heads, N, M) to memory (Dao et al. 2022, FlashAttention).
TPUs have the Pallas kernel "splash" of JAX; NVIDIA cards from Ampere on have cuDNN's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

Array = jax.Array
# Queries or keys of a block of the TPU kernel: the largest of these that divides their number.
BLOCKS = (512, 256, 128)
# Fewer scores per head than these are cheaper to write out than a kernel is to start.
LEAST_SCORES = 1024 * 1024
# Axes of a mesh that split the batch and the heads, see `diffjax.train.sharding`.
ROWS, HEADS = ("data", "fsdp"), "tensor"
# The first compute capability (Ampere), and the first with heads above 128 (Hopper), of cuDNN's.
AMPERE, HOPPER = 8.0, 9.0


def choose_fused(q: Array, k: Array, mask: Array | None) -> str | None:
    """Choose the fused kernel of the device for some shapes: ``splash``, ``cudnn``, or None.

    The device is that of the mesh that the program is traced for, or else the default one, so that
    programs for absent chips are traced as for present ones. A CPU has no kernel.

    Args:
        q, k: queries (B, N, heads, d) and keys (B, M, heads, d).
        mask: see `diffjax.nets.attention.attend`.
    """
    platform = find_platform()
    if platform == "tpu":
        return "splash" if mask is None and fits_splash(q, k) else None
    if platform in ("gpu", "cuda"):
        return "cudnn" if _fits_cudnn(q, k, mask) else None
    return None


def find_platform() -> str:
    """Find the platform that is traced for: that of the mesh of the context, or the default one."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return str(getattr(device, "platform", None) or jax.default_backend())


def fits_splash(q: Array, k: Array) -> bool:
    """Return whether the TPU kernel takes these shapes and saves something.

    Blocks must divide the queries and the keys, and the mesh the batch and the heads: a kernel is
    not split by the compiler. With several devices and no mesh in the context it cannot be placed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and jax.device_count() > 1:
        return False
    rows, heads = _count_parts(mesh)
    many = q.shape[1] * k.shape[1] >= LEAST_SCORES
    even = all(value.shape[1] % BLOCKS[-1] == 0 for value in (q, k))
    return many and even and q.shape[0] % rows == 0 and q.shape[2] % heads == 0


def _fits_cudnn(q: Array, k: Array, mask: Array | None) -> bool:
    """Return whether cuDNN's kernel takes these shapes: half precision, and heads that it knows.

    With a mask, its gradient needs even numbers of queries and keys; texts have 77 tokens.
    """
    if mask is not None and (q.shape[1] % 2 or k.shape[1] % 2):
        return False
    capability = float(getattr(jax.devices()[0], "compute_capability", 0.0))
    most = 256 if capability >= HOPPER else 128
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and capability >= AMPERE and q.shape[-1] % 8 == 0 and q.shape[-1] <= most


def _count_parts(mesh: AbstractMesh) -> tuple[int, int]:
    """Count the parts into which a mesh splits the batch and the heads."""
    sizes = dict(mesh.shape)
    rows = 1
    for axis in ROWS:
        rows *= sizes.get(axis, 1)
    return rows, sizes.get(HEADS, 1)


def splash(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, interpret: bool = False
) -> Array:
    """Compute attention by JAX's Pallas kernel for TPUs, on every device its part of the batch.

    Shapes are those of `diffjax.nets.attention.attend`; numbers of queries and keys are multiples
    of 128. The backward pass computes the scores again from the stored sums of the softmax.

    Args:
        q, k, v: queries, keys and values.
        mask: must be None.
        interpret: compute the kernel step by step, on any device; for tests.

    Raises:
        ValueError: there is a mask, or the numbers of queries and keys are no multiples of 128.
    """
    if mask is not None or any(x.shape[1] % BLOCKS[-1] for x in (q, k)):
        raise ValueError(
            f"attention=splash takes no mask, and multiples of {BLOCKS[-1]} queries and keys, got "
            f"{q.shape[1]} and {k.shape[1]}; attention=auto takes what fits"
        )

    def compute(q: Array, k: Array, v: Array) -> Array:
        return _run_splash(q, k, v, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return compute(q, k, v)
    place = PartitionSpec(ROWS, None, HEADS, None)
    return jax.shard_map(compute, in_specs=(place,) * 3, out_specs=place, check_vma=False)(q, k, v)


def _run_splash(q: Array, k: Array, v: Array, interpret: bool) -> Array:
    """Call the kernel on one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    rows, columns = (next(b for b in BLOCKS if x.shape[1] % b == 0) for x in (q, k))
    blocks = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        use_fused_bwd_kernel=True,  # scores are computed once in the backward pass, not twice
    )
    full = masks.FullMask((q.shape[1], k.shape[1]))
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([full] * q.shape[2]), block_sizes=blocks, interpret=interpret
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)
