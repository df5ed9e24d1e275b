import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from diffjax.nets.unet import UNet
from diffjax.pretrained import from_state_dict, load_safetensors, save_safetensors, to_state_dict
from diffjax.pretrained.state_dict import list_state_shapes


def _params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {
        "blocks.0": {
            "conv": {"kernel": draw(3, 5, 4, 6), "bias": draw(6)},
            "norm": {"scale": draw(4), "bias": draw(4)},
            "to_out.0": {"kernel": draw(4, 7)},
        },
        "embed": {"embedding": draw(10, 4)},
        "linear_1": {"kernel": draw(2, 4, 3)},
    }


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_keys_and_axes_are_those_of_pytorch():
    params = _params()
    state = to_state_dict(params)
    assert set(state) == {
        "blocks.0.conv.weight",
        "blocks.0.conv.bias",
        "blocks.0.norm.weight",
        "blocks.0.norm.bias",
        "blocks.0.to_out.0.weight",
        "embed.weight",
        "linear_1.weight",
    }
    conv, kernel = state["blocks.0.conv.weight"], params["blocks.0"]["conv"]["kernel"]
    assert conv.shape == (6, 4, 3, 5)
    assert conv[5, 2, 1, 4] == kernel[1, 4, 2, 5]
    np.testing.assert_array_equal(
        state["blocks.0.to_out.0.weight"], params["blocks.0"]["to_out.0"]["kernel"].T
    )
    assert state["linear_1.weight"].shape == (3, 4, 2)
    np.testing.assert_array_equal(state["embed.weight"], params["embed"]["embedding"])


def test_round_trip_is_exact():
    params = _params()
    _assert_equal(from_state_dict(to_state_dict(params), params), params)


def test_keys_of_the_unet():
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, num_classes=3, norm_groups=2)
    z = jnp.zeros((1, 4, 4, 3))
    like = jax.eval_shape(
        net.init, jax.random.key(0), z, jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}
    )["params"]
    state = to_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like))
    shapes = {key: value.shape for key, value in state.items()}
    expected = {
        "conv_in.weight": (8, 3, 3, 3),
        "time_embedding.linear_1.weight": (32, 8),
        "class_embedding.weight": (3, 32),
        "down_blocks.0.downsamplers.0.conv.weight": (8, 8, 3, 3),
        "down_blocks.1.resnets.0.conv_shortcut.weight": (16, 8, 1, 1),
        "down_blocks.1.attentions.0.group_norm.weight": (16,),
        "down_blocks.1.attentions.0.to_out.0.weight": (16, 16),
        "mid_block.resnets.1.time_emb_proj.bias": (16,),
        "up_blocks.0.upsamplers.0.conv.bias": (16,),
    }
    assert expected.items() <= shapes.items()
    _assert_equal(from_state_dict(state, like), jax.tree.map(lambda x: np.zeros(x.shape), like))


def test_the_type_is_that_of_like():
    params = _params()
    half = {key: value.astype(np.float16) for key, value in to_state_dict(params).items()}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    back = from_state_dict(half, like)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float32)}
    _assert_equal(back, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params))


def test_missing_and_unexpected_keys_are_all_named():
    state = {f"other.{i}": np.zeros(1) for i in range(7)}
    state["blocks.0.conv.bias"] = np.zeros(6)
    with pytest.raises(ValueError) as error:
        from_state_dict(state, _params())
    text = str(error.value)
    assert "6 keys are missing: blocks.0.conv.weight, blocks.0.norm.bias" in text
    assert all(f"other.{i}" in text for i in range(7)) and "7 keys are unexpected" in text
    assert "blocks.0.conv.bias" not in text


def test_scanned_layers_have_keys_of_their_own():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 4, 5)).astype(np.float32)
    params = {"a.0": {"transformer_blocks": {"to_q": {"kernel": kernel}}}}
    state = to_state_dict(params)
    assert list(state) == [f"a.0.transformer_blocks.{k}.to_q.weight" for k in range(3)]
    np.testing.assert_array_equal(state["a.0.transformer_blocks.2.to_q.weight"], kernel[2].T)
    assert list_state_shapes(params) == dict.fromkeys(state, (5, 4))
    _assert_equal(from_state_dict(state, params), params)
    del state["a.0.transformer_blocks.1.to_q.weight"]
    with pytest.raises(ValueError, match=r"missing: a\.0\.transformer_blocks\.1\.to_q\.weight"):
        from_state_dict(state, params)


def test_arrays_are_placed_one_by_one():
    params, seen = _params(), []

    def place(key, value):
        seen.append(key)
        return jnp.asarray(value)

    placed = from_state_dict(to_state_dict(params), params, place=place)
    assert sorted(seen) == sorted(to_state_dict(params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    _assert_equal(placed, params)


def test_position_ids_are_passed_over():
    state = {**to_state_dict(_params()), "text_model.embeddings.position_ids": np.arange(77)}
    _assert_equal(from_state_dict(state, _params()), _params())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
    state = to_state_dict(_params())
    state["blocks.0.conv.bias"][3] = value
    with pytest.raises(ValueError, match=r"blocks\.0\.conv\.bias.*not finite"):
        from_state_dict(state, _params())


def test_a_wrong_shape_names_the_key_and_both_shapes():
    params = _params()
    state = to_state_dict(params)
    # As many values as needed, but not transposed.
    state["blocks.0.to_out.0.weight"] = params["blocks.0"]["to_out.0"]["kernel"]
    with pytest.raises(ValueError, match=r"blocks\.0\.to_out\.0\.weight.*\(4, 7\).*\(7, 4\)"):
        from_state_dict(state, params)


@pytest.mark.parametrize(
    "params",
    [
        {"a": {"b": {"bias": np.zeros(1)}}, "a.b": {"bias": np.zeros(1)}},
        {"a": {"scale": np.zeros(1), "kernel": np.zeros((1, 1))}},
    ],
    ids=["path", "renamed leaf"],
)
def test_ambiguous_paths_are_refused(params):
    key = "a.b.bias" if "a.b" in params else "a.weight"
    with pytest.raises(ValueError, match=f"same key: {key}"):
        to_state_dict(params)
    with pytest.raises(ValueError, match=f"same key: {key}"):
        from_state_dict({}, params)


def test_parameters_must_be_nested_dicts():
    with pytest.raises(ValueError, match="nested dicts"):
        to_state_dict({"a": [np.zeros(1)]})
    with pytest.raises(ValueError, match="nested dicts"):
        to_state_dict(np.zeros(1))


def test_file_round_trip_with_metadata(tmp_path):
    params, path = _params(), tmp_path / "weights.safetensors"
    save_safetensors(path, params, {"step": "7"})
    _assert_equal(load_safetensors(path, params), params)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_bfloat16_files_are_read(tmp_path):
    params, path = _params(), tmp_path / "weights.safetensors"
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    save_safetensors(path, half)
    _assert_equal(load_safetensors(path, params), jax.tree.map(lambda x: x.astype("f4"), half))


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt"])
def test_pickles_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    save_file({"a": np.zeros(1)}, path)  # even if it is none
    with pytest.raises(ValueError, match=r"pickle.*safetensors"):
        load_safetensors(path, _params())


@pytest.mark.parametrize("head", [b"\x80\x02}q\x00.", b"PK\x03\x04\x00\x00\x08\x08\x00\x00"])
def test_pickles_are_refused_by_content(tmp_path, head):
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + b"\x00" * 64)
    with pytest.raises(ValueError, match=r"pickle.*safetensors"):
        load_safetensors(path, _params())


def test_a_header_of_640_bytes_is_no_pickle(tmp_path):
    """Its length is stored as 80 02, with which pickles start."""
    path, params = tmp_path / "model.safetensors", {"a": {"bias": np.zeros(1, np.float32)}}
    save_safetensors(path, params, {"note": ""})
    # The header is padded with spaces to a multiple of 8.
    room = 640 - int.from_bytes(path.read_bytes()[:8], "little")
    save_safetensors(path, params, {"note": "x" * room})
    assert path.read_bytes()[:2] == b"\x80\x02"
    _assert_equal(load_safetensors(path, params), params)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_reported(tmp_path, kept):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, _params())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"weights\.safetensors is no complete safetensors file"):
        load_safetensors(path, _params())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_safetensors(tmp_path / "nothing.safetensors", _params())
