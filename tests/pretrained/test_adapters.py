"""Adapters beyond LoRA: closed forms in float64, folders of peft, and what is refused."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import Component, load_lora, merge_lora
from diffjax.pretrained.adapters import Scaling, change_bias, change_weight
from diffjax.pretrained.state_dict import to_state_dict
from tests.parity import sd_cases

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"
TEXT = "text_model.encoder.layers.2.self_attn.q_proj"
FLAT = "lora_unet_" + Q.replace(".", "_")
R, OUT, IN, K = 3, 6, 4, 3


def _rng(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---- closed forms -------------------------------------------------------------------------------


def _sum_over(shape, term):
    """An array of a sum, entry by entry."""
    out = np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        out[index] = term(*index)
    return out


def _lora_linear():
    down, up = _rng(R, IN), _rng(OUT, R)
    change = _sum_over((OUT, IN), lambda o, i: sum(up[o, k] * down[k, i] for k in range(R)))
    return {"down": down, "up": up}, change


def _lora_conv():
    down, up = _rng(R, IN, K, K), _rng(OUT, R, 1, 1)
    change = _sum_over(
        (OUT, IN, K, K), lambda o, i, y, x: sum(up[o, k, 0, 0] * down[k, i, y, x] for k in range(R))
    )
    return {"down": down, "up": up}, change


def _locon_core():
    """up, core and down are three convolutions one after the other."""
    down, mid, up = _rng(R, IN, 1, 1), _rng(R, R, K, K), _rng(OUT, R, 1, 1)
    change = _sum_over(
        (OUT, IN, K, K),
        lambda o, i, y, x: sum(
            up[o, a, 0, 0] * mid[a, b, y, x] * down[b, i, 0, 0] for a in range(R) for b in range(R)
        ),
    )
    return {"down": down, "mid": mid, "up": up}, change


def _loha(*kernel):
    one, two = ((_rng(OUT, R, seed=k), _rng(R, IN * math.prod(kernel), seed=k)) for k in (1, 2))

    def term(o, *at):
        i = np.ravel_multi_index(at, (IN, *kernel))
        first, second = (sum(a[o, k] * b[k, i] for k in range(R)) for a, b in (one, two))
        return first * second

    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, (*one, *two), strict=True)), _sum_over((OUT, IN, *kernel), term)


def _loha_cores():
    roles, products = {}, []
    for n in (1, 2):
        core, a, b = _rng(R, R, K, K, seed=n), _rng(R, OUT, seed=n), _rng(R, IN, seed=n)
        roles |= {f"hada_t{n}": core, f"hada_w{n}_a": a, f"hada_w{n}_b": b}
        products.append(
            _sum_over(
                (OUT, IN, K, K),
                lambda o, i, y, x, core=core, a=a, b=b: sum(
                    core[p, q, y, x] * a[p, o] * b[q, i] for p in range(R) for q in range(R)
                ),
            )
        )
    return roles, products[0] * products[1]


def _kron(one, two, *kernel):
    """W[o1 O2 + o2, i1 I2 + i2] = A[o1, i1] B[o2, i2]."""
    o2, i2 = two.shape[:2]
    return _sum_over(
        (OUT, IN, *kernel),
        lambda o, i, *at: one[o // o2, i // i2] * two[(o % o2, i % i2, *at)],
    )


def _lokr_products():
    a1, b1, a2, b2 = _rng(2, R), _rng(R, 2, seed=1), _rng(3, R), _rng(R, 2, seed=2)
    roles = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2}
    return roles, _kron(a1 @ b1, a2 @ b2)


def _lokr_conv():
    one, a, b = _rng(2, 2), _rng(3, R), _rng(R, 2 * K * K)
    roles = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}
    return roles, _kron(one, (a @ b).reshape(3, 2, K, K), K, K)


def _lokr_core():
    one, core, a, b = _rng(2, 2), _rng(R, R, K, K), _rng(R, 3), _rng(R, 2)
    two = _sum_over(
        (3, 2, K, K),
        lambda o, i, y, x: sum(
            core[p, q, y, x] * a[p, o] * b[q, i] for p in range(R) for q in range(R)
        ),
    )
    roles = {"lokr_w1": one, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    return roles, _kron(one, two, K, K)


FORMS = {
    "lora": _lora_linear,
    "lora of a convolution": _lora_conv,
    "locon with a core": _locon_core,
    "loha": _loha,
    "loha of a convolution": lambda: _loha(K, K),
    "loha with cores": _loha_cores,
    "lokr of products": _lokr_products,
    "lokr of a convolution": _lokr_conv,
    "lokr with a core": _lokr_core,
}


@pytest.mark.parametrize("name", FORMS)
def test_closed_forms(name):
    roles, change = FORMS[name]()
    weight = _rng(*change.shape, seed=9)
    found = change_weight(roles, weight, Scaling(alpha=2.0))
    np.testing.assert_allclose(found, weight + 2 / R * change, rtol=1e-12, atol=1e-12)
    root = change_weight(roles, weight, Scaling(alpha=2.0, root=True))
    np.testing.assert_allclose(root, weight + 2 / R**0.5 * change, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(change_weight(roles, weight, Scaling()), weight + change)


def test_a_lokr_of_whole_factors_has_no_rank_of_its_own():
    """LyCORIS takes its scale to be 1 whatever alpha is; peft divides by the rank of its config."""
    one, two = _rng(2, 2), _rng(3, 2)
    weight, change = _rng(OUT, IN), _kron(one, two)
    roles = {"lokr_w1": one, "lokr_w2": two}
    np.testing.assert_allclose(change_weight(roles, weight, Scaling(5.0)), weight + change)
    found = change_weight(roles, weight, Scaling(5.0, rank=10))
    np.testing.assert_allclose(found, weight + 0.5 * change)


def test_differences_and_norms_know_no_alpha():
    weight, bias, scaling = _rng(OUT, IN), _rng(OUT), Scaling(2.0, rank=8)
    diff, more = _rng(OUT, IN, seed=1), _rng(OUT, seed=1)
    np.testing.assert_array_equal(change_weight({"diff": diff}, weight, scaling), weight + diff)
    np.testing.assert_array_equal(change_weight({"w_norm": more}, bias, scaling), bias + more)
    for role in ("diff_b", "b_norm"):
        np.testing.assert_array_equal(change_bias({role: more}, bias, scaling), bias + more)


def test_the_bias_of_the_second_factor_is_scaled():
    roles = {"down": _rng(R, IN), "up": _rng(OUT, R), "up_bias": _rng(OUT, seed=1)}
    found = change_bias(roles, _rng(OUT), Scaling(2.0))
    np.testing.assert_allclose(found, _rng(OUT) + 2 / R * _rng(OUT, seed=1), rtol=1e-14)


def test_embeddings_of_peft():
    down, up, weight = _rng(R, 7), _rng(OUT, R), _rng(7, OUT)
    found = change_weight(
        {"lora_embedding_A": down, "lora_embedding_B": up}, weight, Scaling(R / 2)
    )
    np.testing.assert_allclose(found, weight + 0.5 * (up @ down).T, rtol=1e-13)


@pytest.mark.parametrize("kernel", [(), (K, K)])
@pytest.mark.parametrize("role", ["dora_scale", "lora_magnitude_vector", "inputs"])
def test_dora_has_the_norms_that_the_file_says(kernel, role):
    """Each output (or, in early files, each input) has the norm of its magnitude, to a sign."""
    weight = _rng(OUT, IN, *kernel)
    roles = {"down": _rng(R, IN, *kernel), "up": _rng(OUT, R, *(1 for _ in kernel))}
    plain = change_weight(roles, weight, Scaling(2.0))
    size, axis = (IN, 1) if role == "inputs" else (OUT, 0)
    magnitude = 1 + _rng(size) ** 2
    ones = tuple(1 for _ in kernel)
    shapes = {
        "dora_scale": (OUT, 1, *ones),
        "lora_magnitude_vector": (1, OUT, *ones) if kernel else (OUT,),
        "inputs": (1, IN, *ones),
    }
    name = "dora_scale" if role == "inputs" else role
    found = change_weight({**roles, name: magnitude.reshape(shapes[role])}, weight, Scaling(2.0))
    rest = tuple(k for k in range(found.ndim) if k != axis)
    np.testing.assert_allclose(np.sqrt((found**2).sum(rest)), magnitude, rtol=1e-12)
    ratio = found / plain
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio.mean(rest, keepdims=True), ratio.shape))


def test_what_does_not_fit_is_refused():
    weight = _rng(OUT, IN)
    for roles in (
        {"down": _rng(R, IN + 1), "up": _rng(OUT, R)},
        {"down": _rng(R + 1, IN), "up": _rng(OUT, R)},
        {"diff": _rng(IN, OUT)},
        {"diff": _rng(OUT, IN), "dora_scale": _rng(OUT + 1, 1)},
        {"diff": _rng(OUT, IN), "lora_magnitude_vector": _rng(1, IN)},
        {"lokr_w1": _rng(2, 2), "lokr_w2": _rng(3, 3)},
        {"down": _rng(R, IN), "up": _rng(OUT, R), "mid": _rng(2, R, 1, 1)},
    ):
        with pytest.raises(ValueError, match=r"shape|fit"):
            change_weight(roles, weight, Scaling())


def test_any_shapes_fit_or_are_refused():
    """Whatever shapes a file has, the result has that of the weight, or there is an error."""
    rng = np.random.default_rng(0)
    kinds = [list(FORMS[name]()[0]) for name in FORMS] + [["diff"], ["lokr_w1", "lokr_w2"]]
    fitted = 0
    for _ in range(4000):
        names = [*kinds[rng.integers(len(kinds))]]
        names += [["dora_scale"], ["lora_magnitude_vector"], [], []][rng.integers(4)]
        roles = {name: np.ones(rng.integers(0, 4, rng.integers(0, 5))) for name in names}
        weight = np.ones([(2, 2), (1, 2), (2, 2, 1, 1), (2,), (3, 1, 3, 3)][rng.integers(5)])
        try:
            found = change_weight(roles, weight, Scaling(1.0))
        except ValueError:
            continue
        assert found.shape == weight.shape
        fitted += 1
    assert fitted


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    out = {}
    for name, config in (("unet", sd_cases.UNETS["sd1"]), ("text_encoder", sd_cases.TEXTS["clip"])):
        out[name] = Component(*sd_cases.random_params(config), config)
    return out


@pytest.fixture(scope="module")
def shapes(models):
    return {k: v.shape for k, v in to_state_dict(models["unet"].params).items()}


def _float(*shape, seed=0):
    return _rng(*shape, seed=seed).astype(np.float32)


def _pair(shape, rank=2):
    return _float(rank, *shape[1:]), _float(shape[0], rank, *(1 for _ in shape[2:]))


def _product(down, up):
    return np.einsum("or,r...->o...", up.reshape(len(up), -1), down)


def _folder(path, tensors, **config):
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return path


def _changes(models, path, part="unet", **options):
    """What a file adds to the weights and biases of a network, where it adds anything."""
    before = to_state_dict(models[part].params)
    after = to_state_dict(merge_lora(models, path, **options)[part].params)
    return {k: after[k] - before[k] for k in before if not np.array_equal(before[k], after[k])}


def _check(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 1.0),
        ({"r": 2, "lora_alpha": 6}, 3.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
        ({"r": 8, "rank_pattern": {"to_q": 2}, "lora_alpha": 6}, 3.0),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {f"^{Q}": 1}}, 0.5),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"^attn1.to_q": 1}}, 3.0),
        ({"r": 2, "lora_alpha": 6, "fan_in_fan_out": True, "lora_dropout": 0.1}, 3.0),
        ({"r": 2, "lora_alpha": 6, "init_lora_weights": "gaussian", "bias": "none"}, 3.0),
        ({"r": 2, "lora_alpha": 6, "loftq_config": {}, "megatron_core": "megatron.core"}, 3.0),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_folders_of_peft(tmp_path, models, shapes, config, factor, as_file):
    down, up = _pair(shapes[f"{Q}.weight"])
    head = f"base_model.model.{Q}"
    path = _folder(
        tmp_path / "cats", {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}, **config
    )
    path = path / "adapter_model.safetensors" if as_file else path
    expected = {f"{Q}.weight": factor * _product(down, up)}
    _check(_changes(models, path), expected)
    _check(_changes(models, path, scale=0.5), {k: 0.5 * v for k, v in expected.items()})


def test_a_peft_folder_of_a_text_encoder(tmp_path, models):
    key = f"{TEXT}.weight"
    down, up = _pair(to_state_dict(models["text_encoder"].params)[key].shape)
    head = f"base_model.model.{TEXT}"
    tensors = {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}
    path = _folder(tmp_path / "cats", tensors, r=2, lora_alpha=4)
    _check(_changes(models, path, "text_encoder"), {key: 2 * _product(down, up)})
    two = {**models, "text_encoder_2": models["text_encoder"]}
    with pytest.raises(ValueError, match="could be of text_encoder or text_encoder_2; put"):
        merge_lora(two, path)
    path = _folder(tmp_path / "text_encoder_2", tensors, r=2, lora_alpha=4)
    _check(_changes(two, path, "text_encoder_2"), {key: 2 * _product(down, up)})
    assert not _changes(two, path, "text_encoder")


def test_a_folder_of_diffusers(tmp_path, models, shapes):
    down, up = _pair(shapes[f"{Q}.weight"])
    tensors = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    _check(_changes(models, tmp_path), {f"{Q}.weight": _product(down, up)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"peft_type": "IA3"},
            r"adapter_config\.json is of peft_type IA3, which is not read; LORA",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base"),
        ({"use_qalora": True}, "settings that are not read: use_qalora=True"),
        ({"layer_replication": [[0, 4]]}, "not read: layer_replication="),
        ({"trainable_token_indices": [3]}, "not read: trainable_token_indices="),
        ({"next_years_trick": 0.5}, "not read: next_years_trick=0.5"),
        ({"use_dora": True}, "has use_dora, but .* has no magnitudes"),
        ({"lora_alpha": "six"}, "alpha in .* must be a positive number, got 'six'"),
        ({"lora_alpha": float("inf")}, r"alpha in .* must be a positive number, got inf"),
        ({"r": True}, r"r in .* must be a positive number, got True"),
        ({"r": 2.5}, r"r in .* must be a whole number, got 2\.5"),
        ({"alpha_pattern": 3}, r"alpha_pattern in .* must be an object, got 3"),
        ({"modules_to_save": "conv_out"}, r"modules_to_save in .* must be a list of names"),
        ({"use_rslora": "no"}, r"use_rslora in .* must be true or false, got 'no'"),
        ({"bias": "weird"}, r"bias in .* must be one of none, all, lora_only, got 'weird'"),
        ({"alpha_pattern": {".*to_q": 1}}, r"must hold names of layers, not '\.\*to_q'"),
    ],
)
def test_settings_that_are_not_read_are_refused(tmp_path, models, shapes, config, message):
    down, up = _pair(shapes[f"{Q}.weight"])
    head = f"base_model.model.{Q}"
    tensors = {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}
    with pytest.raises(ValueError, match=message):
        merge_lora(models, _folder(tmp_path, tensors, **config))


def test_weights_that_peft_saves_beside_are_taken(tmp_path, models, shapes):
    down, up = _pair(shapes[f"{Q}.weight"])
    out, bias = _float(*shapes["conv_out.weight"]), _float(*shapes["conv_out.bias"])
    head = "base_model.model."
    tensors = {f"{head}{Q}.lora_A.weight": down, f"{head}{Q}.lora_B.weight": up}
    tensors |= {f"{head}conv_out.weight": out, f"{head}conv_out.bias": bias}
    path = _folder(tmp_path, tensors, r=2, lora_alpha=2, modules_to_save=["conv_out"])
    before = to_state_dict(models["unet"].params)
    expected = {
        f"{Q}.weight": _product(down, up),
        "conv_out.weight": out - before["conv_out.weight"],
        "conv_out.bias": bias - before["conv_out.bias"],
    }
    _check(_changes(models, path), expected)
    _check(_changes(models, path, scale=0.3), {k: 0.3 * v for k, v in expected.items()})
    path = _folder(tmp_path, tensors, r=2, lora_alpha=2)
    with pytest.raises(ValueError, match=r"2 of its keys .* base_model\.model\.conv_out\.bias"):
        merge_lora(models, path)


def test_biases_of_peft(tmp_path, models, shapes):
    down, up = _pair(shapes[f"{CONV}.weight"])
    own, scaled = _float(*shapes[f"{CONV}.bias"]), _float(*shapes[f"{CONV}.bias"], seed=1)
    head = f"base_model.model.{CONV}"
    tensors = {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}
    before = to_state_dict(models["unet"].params)[f"{CONV}.bias"]
    path = _folder(
        tmp_path / "a",
        {**tensors, f"{head}.lora_B.bias": scaled},
        r=2,
        lora_alpha=6,
        lora_bias=True,
    )
    weight = {f"{CONV}.weight": 3 * _product(down, up)}
    _check(_changes(models, path), weight | {f"{CONV}.bias": 3 * scaled})
    more = {**tensors, f"{head}.base_layer.bias": own}
    path = _folder(tmp_path / "b", more, r=2, lora_alpha=6, bias="lora_only")
    _check(_changes(models, path), weight | {f"{CONV}.bias": own - before})
    down, up = _pair(shapes[f"{Q}.weight"])  # a layer without a bias
    head = f"base_model.model.{Q}"
    tensors = {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}
    path = _folder(tmp_path / "c", {**tensors, f"{head}.lora_B.bias": up[:, 0].copy()}, r=2)
    with pytest.raises(ValueError, match=r"changes the bias of .*to_q, which has none"):
        merge_lora(models, path)


def test_adapters_may_have_any_name(tmp_path, models, shapes):
    down, up = _pair(shapes[f"{Q}.weight"])
    path = tmp_path / "lora.safetensors"
    named = {f"unet.{Q}.lora_A.my_name.weight": down, f"unet.{Q}.lora_B.my_name.weight": up}
    save_file(named, path)
    _check(_changes(models, path), {f"{Q}.weight": _product(down, up)})
    other = {key.replace("my_name", "other"): value for key, value in named.items()}
    save_file({**named, **other}, path)
    with pytest.raises(ValueError, match="holds 2 adapters, my_name, other; save each"):
        merge_lora(models, path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["down", "up", "alpha"])
def test_values_that_are_not_finite_are_refused(tmp_path, models, shapes, bad, which):
    down, up = _pair(shapes[f"{Q}.weight"])
    tensors = {"down": down, "up": up, "alpha": np.ones(1, np.float32)}
    tensors[which].flat[0] = bad
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    save_file({f"{FLAT}.{names[k]}": v for k, v in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"{FLAT}\.{names[which]} in .*a\.safetensors .*finite"):
        merge_lora(models, tmp_path / "a.safetensors")
    if which != "alpha":
        with pytest.raises(ValueError, match="not finite"):
            load_lora(models["unet"], tmp_path / "a.safetensors")


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_the_scale_is_a_finite_number(tmp_path, models, scale):
    with pytest.raises(ValueError, match=r"scale of .* must be a finite number"):
        merge_lora(models, tmp_path / "a.safetensors", scale=scale)


def test_files_of_lycoris(tmp_path, models, shapes):
    """Every kind in one file, each with what is said of it: alpha, magnitudes, biases."""
    flat = {name: "lora_unet_" + name.replace(".", "_") for name in (Q, CONV, NORM)}
    (outputs, inputs), conv = shapes[f"{Q}.weight"], shapes[f"{CONV}.weight"]
    one, two = ((_float(outputs, R, seed=k), _float(R, inputs, seed=k)) for k in (1, 2))
    core, small = _float(R, R, *conv[2:]), _float(2, 2)
    a, b = _float(R, conv[0] // 2), _float(R, conv[1] // 2)
    magnitude, w, bias = 1 + _float(outputs, 1) ** 2, _float(8), _float(8, seed=1)
    roles = {
        Q: dict(hada_w1_a=one[0], hada_w1_b=one[1], hada_w2_a=two[0], hada_w2_b=two[1])
        | dict(alpha=np.array(1.5, np.float32), dora_scale=magnitude),
        CONV: dict(lokr_w1=small, lokr_t2=core, lokr_w2_a=a, lokr_w2_b=b)
        | dict(alpha=np.array([0.5], np.float32)),
        NORM: dict(w_norm=w, b_norm=bias),
    }
    path = tmp_path / "lycoris.safetensors"
    save_file({f"{flat[n]}.{k}": v for n, some in roles.items() for k, v in some.items()}, path)
    before = to_state_dict(models["unet"].params)
    plain = before[f"{Q}.weight"] + 0.5 * (one[0] @ one[1]) * (two[0] @ two[1])
    scaled = plain * magnitude / np.linalg.norm(plain, axis=1, keepdims=True)
    kron = np.kron(small[..., None, None], np.einsum("pqyx,po,qi->oiyx", core, a, b))
    expected = {
        f"{Q}.weight": scaled - before[f"{Q}.weight"],
        f"{CONV}.weight": 0.5 / R * kron,
        f"{NORM}.weight": w,
        f"{NORM}.bias": bias,
    }
    _check(_changes(models, path), expected)
    _check(_changes(models, path, scale=0.4), {k: 0.4 * v for k, v in expected.items()})
    with pytest.raises(ValueError, match=r"more than low-rank adapters .*it can only be merged"):
        load_lora(models["unet"], path)


def test_differences_of_a_layer_that_has_no_bias(tmp_path, models, shapes):
    path = tmp_path / "full.safetensors"
    diff, bias = _float(*shapes[f"{CONV}.weight"]), _float(*shapes[f"{CONV}.bias"])
    name = "lora_unet_" + CONV.replace(".", "_")
    save_file({f"{name}.diff": diff, f"{name}.diff_b": bias}, path)
    _check(_changes(models, path), {f"{CONV}.weight": diff, f"{CONV}.bias": bias})
    save_file({f"{FLAT}.diff_b": bias}, path)
    with pytest.raises(ValueError, match="which has none"):
        merge_lora(models, path)


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("oft_blocks", "OFT"),
        ("on_input", r"\(IA\)\^3"),
        ("a1.weight", "GLoRA"),
        ("lora_E", "AdaLoRA"),
        ("strange", "or lack others"),
    ],
)
def test_what_is_not_read_is_counted_with_three_examples(tmp_path, models, role, kind):
    tensors = {f"lora_unet_layer_{k:03d}.{role}": np.ones(2, np.float32) for k in range(400)}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"400 of its keys .*{kind}") as error:
        merge_lora(models, tmp_path / "other.safetensors")
    text = str(error.value)
    assert "layer_002" in text and "layer_003" not in text and "and 397 more" in text
    assert len(text) < 500


def test_layers_of_another_model_are_counted(tmp_path, models):
    tensors = {}
    for k in range(50):
        tensors[f"lora_unet_double_blocks_{k}_to_q.lora_down.weight"] = np.ones((1, 4), np.float32)
        tensors[f"lora_unet_double_blocks_{k}_to_q.lora_up.weight"] = np.ones((4, 1), np.float32)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"and 47 more: 50 of 50 layers in .*other") as error:
        merge_lora(models, tmp_path / "other.safetensors")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "names",
    [
        ("lora_down.weight",),
        ("hada_w1_a", "hada_w1_b", "hada_w2_a"),
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1"),
        ("lokr_w1", "lokr_w2_a"),
        ("lokr_w2",),
        ("alpha",),
        ("dora_scale",),
        ("lora_down.weight", "lora_up.weight", "lokr_t2"),
    ],
)
def test_incomplete_layers_are_refused(tmp_path, models, names):
    save_file({f"{FLAT}.{name}": np.ones((1, 1), np.float32) for name in names},
              tmp_path / "a.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=rf"not a low-rank adapter .*{names[0]}"):
        merge_lora(models, tmp_path / "a.safetensors")


def test_folders_without_an_adapter(tmp_path, models):
    with pytest.raises(FileNotFoundError, match=r"neither adapter_model\.safetensors nor pytorch_"):
        merge_lora(models, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle"):
        merge_lora(models, tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["emb_params"], "a word of textual inversion, which with_concept takes"),
        (["first_stage_model.decoder.conv_in.weight"], "an autoencoder, which the argument vae"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.a.weight"],
            "a checkpoint of a whole model",
        ),
        (["double_blocks.0.img_attn.qkv.weight"], "a model of Flux"),
        (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
    ],
)
def test_files_that_are_something_else(tmp_path, models, keys, message):
    save_file({key: np.ones((1, 1), np.float32) for key in keys}, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=rf"a\.safetensors is not a low-rank adapter, but {message}"
    ):
        merge_lora(models, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "another model, XL by their names"),
        ("unet.down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q", "another model, XL"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "a model of Flux, which is not supported"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "a model of Flux"),
        ("lora_unet_joint_blocks_0_context_block_attn_qkv", "a model of Stable Diffusion 3"),
        ("unet.nowhere.to_q", "another model$"),
    ],
)
def test_the_family_of_an_adapter_is_named(tmp_path, models, module, family):
    kohya = module.startswith("lora_")
    names = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    save_file({f"{module}.{n}.weight": np.ones((1, 1), np.float32) for n in names},
              tmp_path / "a.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=rf"1 of 1 layers in .* are for {family}"):
        merge_lora(models, tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float64"])
def test_types_of_files(tmp_path, models, shapes, dtype):
    down, up = (np.round(a * 4) / 4 for a in _pair(shapes[f"{Q}.weight"]))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    stored = {"lora_down": down.astype(kind), "lora_up": up.astype(kind)}
    save_file({f"{FLAT}.{k}.weight": v for k, v in stored.items()}, tmp_path / "a.safetensors")
    expected = _product(*(v.astype(np.float32) for v in stored.values()))
    _check(_changes(models, tmp_path / "a.safetensors"), {f"{Q}.weight": expected})


def test_a_model_in_bfloat16_stays_so(tmp_path, models, shapes):
    low = models["unet"]._replace(
        params=jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), models["unet"].params)
    )
    down, up = _pair(shapes[f"{Q}.weight"])
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": 1 + up[:, :1] ** 2}
    save_file({f"{FLAT}.{k}": v for k, v in tensors.items()}, tmp_path / "a.safetensors")
    merged = merge_lora({"unet": low}, tmp_path / "a.safetensors")["unet"].params
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    exact = merge_lora({"unet": models["unet"]}, tmp_path / "a.safetensors")["unet"].params
    found, wanted = (to_state_dict(p)[f"{Q}.weight"].astype("f4") for p in (merged, exact))
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)
