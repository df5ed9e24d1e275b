"""Closed forms of adapters: what an adapter of one layer makes of the layer's weight.

Weights have torch's axes, (O, I) or (O, I, H, W); r is the rank and s the factor of `Scaling`.

| kind | change of the weight | tensors |
|---|---|---|
| LoRA (Hu et al. 2021) | ``s up down`` | down (r, I, ...), up (O, r) |
| LoCon with a core | ``s up mid down`` | mid (r, r, H, W), down (r, I) |
| LoHa (Hyeon-Woo et al. 2022) | ``s (w1_a w1_b) * (w2_a w2_b)`` | w1_a (O, r), w1_b (r, I ...) |
| LoHa with cores | each product is ``w1_a^T t1 w1_b`` | t1 (r, r, H, W), w1_a (r, O) |
| LoKr (Yeh et al. 2024) | ``s w1 (x) w2``, each maybe a product | w1_a (O', r), t2 (r, r, H, W) |
| differences, norms | ``diff``, ``w_norm``; of the bias ``diff_b``, ``b_norm`` | as the weight |
| embeddings of peft | ``s (B A)^T`` | A (r, V), B (D, r) |
| DoRA (Liu et al. 2024) | ``m (W + change) / |W + change|`` | m, one for each output or input |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

Roles = Mapping[str, np.ndarray]  # tensors of one layer by what they are
Shape = tuple[int, ...]

# Roles that change the weight, by kind; LoKr's are checked where they are used.
WEIGHT_ROLES = {
    "LoRA": ("down", "up", "mid"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "difference": ("diff",),
    "norm": ("w_norm",),
}
MAGNITUDES = ("dora_scale", "lora_magnitude_vector")
BIAS_ROLES = ("up_bias", "diff_b", "b_norm")


# What a layer that has the first role must have too.
_COMPANIONS = {
    "down": ("up",),
    "up": ("down",),
    "mid": ("down",),
    "up_bias": ("up",),
    **dict.fromkeys(WEIGHT_ROLES["LoHa"], WEIGHT_ROLES["LoHa"][:4]),
    "hada_t1": (*WEIGHT_ROLES["LoHa"][:4], "hada_t2"),
    "hada_t2": (*WEIGHT_ROLES["LoHa"][:4], "hada_t1"),
    "lokr_w1": ("lokr_w2",),
    "lokr_w2": ("lokr_w1",),
    "lokr_t2": ("lokr_w1", "lokr_w2"),
    "lora_embedding_A": ("lora_embedding_B",),
    "lora_embedding_B": ("lora_embedding_A",),
}


class Scaling(NamedTuple):
    """The factor of an adapter's change: ``s = alpha / r``, or ``alpha / sqrt(r)`` when
    rank-stabilised.

    Attributes:
        alpha: None for a factor of 1.
        rank: rank from a config, used when the shapes of the tensors do not show it.
        root: whether to divide by the root of the rank (Kalajdzievski 2023).
    """

    alpha: float | None = None
    rank: int | None = None
    root: bool = False

    def factor(self, rank: int | None) -> float:
        """Return the factor s for an adapter of rank ``rank``.

        It is 1 if alpha or the rank is unknown.
        """
        rank = rank or self.rank
        if self.alpha is None or not rank:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.root else rank)


def is_complete(roles: Collection[str]) -> bool:
    """Return whether a layer with tensors of these roles has all tensors that each of them
    needs.
    """
    # A factor of LoKr may be a product of two.
    there = {role for role in roles if not re.fullmatch(r"lokr_w\d_[ab]", role)}
    for number in "12":
        parts = {f"lokr_w{number}_a", f"lokr_w{number}_b"} & set(roles)
        if len(parts) == 1:
            return False
        there |= {f"lokr_w{number}"} if parts else set()
    wanted = {other for role in there for other in _COMPANIONS.get(role, ())}
    changes = {role for kind in WEIGHT_ROLES.values() for role in kind} & there
    return wanted <= there and bool(changes or not set(MAGNITUDES) & there)


def find_rank(shapes: Mapping[str, Shape]) -> int | None:
    """Return the rank that the shapes of a layer's tensors show, or None for a LoKr of full
    factors.
    """
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "lora_embedding_A"):
        if shapes.get(role):
            return shapes[role][0]
    return None


def change_weight(roles: Roles, weight: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Return the weight as an adapter of strength 1 changes it; see the table of this module.

    Args:
        roles: tensors of the layer by role.
        weight: the weight of the base model in torch's axes, (O, I) or (O, I, H, W).
        scaling: the factor s.

    Raises:
        ValueError: the tensors do not fit each other or the weight. The message begins with a verb,
            since the caller puts the key before it.
    """
    if "weight" in roles:
        return _reshape_change(roles["weight"], weight.shape, roles)
    shape, factor = weight.shape, scaling.factor(find_rank({k: v.shape for k, v in roles.items()}))
    for kind, form in _FORMS.items():
        if any(role in roles for role in WEIGHT_ROLES[kind]):
            scaled = 1.0 if kind in ("difference", "norm") else factor
            weight = weight + scaled * _reshape_change(form(roles), shape, roles)
    magnitude = next((role for role in MAGNITUDES if role in roles), None)
    return weight if magnitude is None else _apply_magnitude(weight, magnitude, roles[magnitude])


def change_bias(roles: Roles, bias: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Return the bias (O,) as an adapter of strength 1 changes it.

    Raises:
        ValueError: the tensors do not fit the bias.
    """
    if "bias" in roles:
        return _reshape_change(roles["bias"], bias.shape, roles)
    factor = scaling.factor(find_rank({k: v.shape for k, v in roles.items()}))
    for role in BIAS_ROLES:
        if role in roles:
            scaled = factor if role == "up_bias" else 1.0
            bias = bias + scaled * _reshape_change(roles[role], bias.shape, roles)
    return bias


def _reshape_change(change: np.ndarray, shape: Shape, roles: Roles) -> np.ndarray:
    """Reshape a change to the shape of its weight.

    Raises:
        ValueError: the change has another number of entries or of outputs.
    """
    if change.size != math.prod(shape) or change.shape[:1] != shape[:1]:
        shapes = " and ".join(str(value.shape) for value in roles.values() if value.ndim)
        raise ValueError(f"has shape {shape}, but the adapter has shapes {shapes}")
    return change.reshape(shape)


def _apply_magnitude(weight: np.ndarray, role: str, magnitude: np.ndarray) -> np.ndarray:
    """Return ``m W / |W|`` with the magnitudes m of a DoRA (Liu et al. 2024, eq. 5).

    The norm is over all axes but that of the magnitudes, and is formed in float64. peft has one
    magnitude per output whatever the axes are; LyCORIS has one per output, or one per input with
    shape (1, I, ...).

    Raises:
        ValueError: there are as many magnitudes as neither outputs nor inputs.
    """
    outputs, inputs = weight.shape[0], weight.shape[1] if weight.ndim > 1 else 0
    # peft's magnitudes are of the outputs whatever their axes are; LyCORIS' say it by their axes.
    lycoris = role == "dora_scale"
    outward = magnitude.size == outputs and (not lycoris or magnitude.shape[:1] == (outputs,))
    inward = lycoris and magnitude.size == inputs and magnitude.shape[:2] == (1, inputs)
    if not outward and not inward:
        raise ValueError(
            f"has shape {weight.shape}, but the magnitudes of its DoRA have shape {magnitude.shape}"
        )
    axis = 0 if outward else 1
    rest = tuple(k for k in range(weight.ndim) if k != axis)
    norm = np.sqrt((weight.astype(np.float64) ** 2).sum(rest, keepdims=True))
    norm += np.finfo(np.float32).eps * (norm == 0)
    return weight * (magnitude.reshape(norm.shape) / norm).astype(weight.dtype)


# ---- forms --------------------------------------------------------------------------------------


def _multiply_factors(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply factors (O, r, ...) and (r, I, ...), flattened to matrices, to a matrix (O, I ...).

    Raises:
        ValueError: the ranks differ.
    """
    one, other = _flatten_factor(left), _flatten_factor(right)
    if one.shape[1] != other.shape[0]:
        raise ValueError(f"has an adapter whose factors {left.shape} and {right.shape} do not fit")
    return one @ other


def _flatten_factor(factor: np.ndarray) -> np.ndarray:
    """Reshape a factor to a matrix with the same first axis.

    Raises:
        ValueError: it has less than two axes, or no entries.
    """
    if factor.ndim < 2 or not factor.size:
        raise ValueError(f"has an adapter with a factor of shape {factor.shape}")
    return factor.reshape(len(factor), -1)


def _contract_core(core: np.ndarray, outward: np.ndarray, inward: np.ndarray) -> np.ndarray:
    """Contract a core (r, r, H, W) with (r, O) and (r, I) to (O, I, H, W).

    Raises:
        ValueError: the ranks differ, or an array has another number of axes.
    """
    flat = core.ndim > 2 and outward.ndim == inward.ndim == 2
    if not flat or core.shape[:2] != (len(outward), len(inward)):
        raise ValueError(f"has an adapter whose core {core.shape} does not fit its factors")
    return np.einsum("ij...,io,jk->ok...", core, outward, inward, optimize=True)


def _expand_lora(roles: Roles) -> np.ndarray:
    """Return the change (O, I ...) of a LoRA, with a core in the middle if it has one."""
    down, up = roles["down"], roles["up"]
    if "mid" in roles:
        return _contract_core(roles["mid"], _flatten_factor(up).T, _flatten_factor(down))
    return _multiply_factors(up, down)


def _expand_loha(roles: Roles) -> np.ndarray:
    """Return the change of a LoHa: the elementwise product of two low-rank matrices."""
    return _expand_hadamard_factor(roles, "1") * _expand_hadamard_factor(roles, "2")


def _expand_hadamard_factor(roles: Roles, number: str) -> np.ndarray:
    """Return one of the two matrices of a LoHa, ``number`` being "1" or "2"."""
    a, b, core = (
        roles[f"hada_w{number}_a"],
        roles[f"hada_w{number}_b"],
        roles.get(f"hada_t{number}"),
    )
    return _multiply_factors(a, b) if core is None else _contract_core(core, a, b)


def _expand_lokr(roles: Roles) -> np.ndarray:
    """Return the change of a LoKr: the Kronecker product of its two factors.

    The first factor is a matrix (O', I'); the second may be a convolution (O'', I'', H, W).

    Raises:
        ValueError: a factor has another number of axes.
    """
    outer, inner = _expand_kronecker_factor(roles, "1"), _expand_kronecker_factor(roles, "2")
    if outer.ndim != 2 or inner.ndim < 2:
        raise ValueError(f"has a LoKr whose factors are {outer.shape} and {inner.shape}")
    return np.kron(outer.reshape(*outer.shape, *(1 for _ in inner.shape[2:])), inner)


def _expand_kronecker_factor(roles: Roles, number: str) -> np.ndarray:
    """Return one factor of a LoKr, which is stored whole or as a low-rank product with an
    optional core.
    """
    name = f"lokr_w{number}"
    if name in roles:
        return roles[name]
    a, b, core = roles[f"{name}_a"], roles[f"{name}_b"], roles.get(f"lokr_t{number}")
    return _multiply_factors(a, b) if core is None else _contract_core(core, a, b)


def _expand_embedding(roles: Roles) -> np.ndarray:
    """Return the change (rows, width) of an embedding table, from peft's A (r, rows) and B
    (width, r).
    """
    return _multiply_factors(roles["lora_embedding_B"], roles["lora_embedding_A"]).T


_FORMS: dict[str, Callable[[Roles], np.ndarray]] = {
    "LoRA": _expand_lora,
    "LoHa": _expand_loha,
    "LoKr": _expand_lokr,
    "embedding": _expand_embedding,
    "difference": lambda roles: roles["diff"],
    "norm": lambda roles: roles["w_norm"],
}
