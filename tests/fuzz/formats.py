"""Every format that is read: a valid example, how it is read, and how it is changed.

Reading gives arrays and plain values by name. They are compared with those of the example; where a
library of others can read the same file (safetensors, gzip), with what that says.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import safetensors.numpy

from configs import ddpm
from diffjax import runs
from diffjax.cli import image_options
from diffjax.config import read_config
from diffjax.config.store import NOTE
from diffjax.data import captions, folders, formats, latents, pictures
from diffjax.metrics import reference
from diffjax.nets.text import CLIPText
from diffjax.pretrained import lora_files, prompts, schedulers, tokenizers
from diffjax.pretrained.config_specs import check_manifest
from diffjax.pretrained.files import open_safetensors
from diffjax.pretrained.models import Component, load_model, save_model
from diffjax.pretrained.pickles import open_pickle
from diffjax.pretrained.state_dict import from_state_dict, iterate_state, to_state_dict
from diffjax.runs.exported import read_export
from diffjax.train import Checkpoints, State
from diffjax.untrusted import naming, read_json
from tests.fuzz.mutations import (
    Change,
    change_bytes,
    change_gzip,
    change_json,
    change_safetensors,
    change_zip,
)
from tests.parity import ae_cases, generate_cases, sd_cases
from tests.pretrained import words

GOLDEN = Path(__file__).parents[1] / "golden"
Values = dict[str, Any]


class Format(NamedTuple):
    """A format.

    Attributes:
        write: makes a valid example in a folder.
        read: reads it.
        checked: keys of JSON that must be refused out of range, as `change_json` knows them.
        sealed: whether what is read must be what was written, as checksums promise.
        says: ``folder -> values`` as another reader has them, or None if there is no other.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Values]
    checked: dict[str, str] = {}  # noqa: RUF012
    sealed: bool = False
    says: Callable[[Path], Values | None] | None = None


def _arrays(mapping: Any) -> Values:
    return {key: np.asarray(mapping[key]) for key in mapping}


def _params(model: Component) -> Values:
    return {**dict(iterate_state(model.params)), "net": repr(model.net)}


# ---- weights ------------------------------------------------------------------------------------


def _write_safetensors(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.weight": rng.standard_normal((3, 4)).astype("f4") for i in range(3)}
    tensors["layer.0.half"] = np.arange(4, dtype=np.float16)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _read_safetensors(folder: Path) -> Values:
    file = folder / "model.safetensors"
    with naming(file):
        like = {
            "layer.0": {"kernel": np.zeros((4, 3), "f4"), "half": np.zeros(4, "f4")},
            **{f"layer.{i}": {"kernel": np.zeros((4, 3), "f4")} for i in (1, 2)},
        }
        return to_state_dict(from_state_dict(open_safetensors(file), like))


def _library(folder: Path) -> Values | None:
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    return {key: value.astype(np.float32) for key, value in found.items()}


def _pickle_says(folder: Path) -> Values | None:
    """Every number that is read stands in the file, or in a member of the archive."""
    raw = (folder / "model.pth").read_bytes()
    if raw[:2] == b"PK":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                raw = b"".join(archive.read(info) for info in archive.infolist())
    for key, value in _read_pickle(folder).items():
        for number in value.reshape(-1)[:1000]:
            if number.tobytes() not in raw:
                raise AssertionError(f"{key} holds {number}, which is not in the file")
    return None


def _read_pickle(folder: Path) -> Values:
    return _arrays(open_pickle(folder / "model.pth"))


def _write_network(config: dict[str, Any], shard: int = 10**9) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        net, params = sd_cases.random_params(config)
        save_model(folder, net, params, config=config, shard=shard)

    return write


def _read_network(folder: Path) -> Values:
    return _params(load_model(folder))


def _write_adapter(folder: Path) -> None:
    net, params = sd_cases.random_params(sd_cases.TEXTS["clip"])
    save_model(folder / "model", net, params, config=sd_cases.TEXTS["clip"])
    rng = np.random.default_rng(0)
    out = {}
    for layer in range(3):
        name = f"lora_te_text_model_encoder_layers_{layer}_self_attn_q_proj"
        out[f"{name}.lora_down.weight"] = rng.standard_normal((2, 16)).astype("f4")
        out[f"{name}.lora_up.weight"] = rng.standard_normal((16, 2)).astype("f4")
        out[f"{name}.alpha"] = np.full((), 2, np.float32)
    safetensors.numpy.save_file(out, folder / "adapter.safetensors", {"note": "{}"})


def _read_adapter(folder: Path) -> Values:
    models = {"text_encoder": load_model(folder / "model")}
    return _params(lora_files.merge_lora(models, folder / "adapter.safetensors")["text_encoder"])


def _write_concept(folder: Path) -> None:
    words.write(folder / "tokenizer", length=9)
    rows = np.random.default_rng(0).standard_normal((2, 16)).astype("f4")
    safetensors.numpy.save_file({"<cat>": rows}, folder / "concept.safetensors")


def _read_concept(folder: Path) -> Values:
    tokenizer = tokenizers.load_tokenizer(folder / "tokenizer")
    size = max(tokenizer.backend.get_vocab().values()) + 1
    net = CLIPText(vocabulary=size, positions=9, features=16, width=24, layers=1, heads=2)
    table = {"text_model.embeddings.token_embedding": {"embedding": np.zeros((size, 16), "f4")}}
    encoder = prompts.TextEncoder(tokenizer, Component(net, table, {}))
    (found,) = prompts.add_concept([encoder], folder / "concept.safetensors")
    return {"ids": found.tokenizer.ids("a <cat> dog"), **to_state_dict(found.model.params)}


# ---- the files around them ----------------------------------------------------------------------


def _write_json(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(value)) and None


def _read_scheduler(folder: Path) -> Values:
    scheduler = schedulers.load_scheduler(folder)
    with naming(folder / schedulers.FILE):
        grid = scheduler.grid(7)
        rows = scheduler.rows(grid)
        scheduler.bound(lambda z, level: z)
    return {"t": np.asarray(rows.level.t), "alpha": np.asarray(rows.level.alpha)}


def _write_older(folder: Path) -> None:
    words.write(folder, length=12)


def _write_newer(folder: Path) -> None:
    words.write(folder, length=12)
    tokenizers.load_tokenizer(folder).backend.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def _read_tokenizer(folder: Path) -> Values:
    found = tokenizers.load_tokenizer(folder)
    return {text: found.weighted(text).ids for text in words.TEXTS}


def _read_manifest(folder: Path) -> Values:
    manifest = read_json(folder / "model_index.json")
    check_manifest(manifest, folder / "model_index.json")
    return {"parts": sorted(map(str, manifest.items()))}


# ---- data ---------------------------------------------------------------------------------------


def _write_idx(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    head = bytes((0, 0, 8, 3)) + np.array(images.shape, ">u4").tobytes()
    (folder / "images.idx.gz").write_bytes(gzip.compress(head + images.tobytes(), mtime=0))


def _read_idx(folder: Path) -> Values:
    return {"images": formats.read_idx(folder / "images.idx.gz", ndim=3)}


def _write_pictures(folder: Path) -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    for suffix in ("png", "jpg", "tiff", "webp", "gif", "bmp"):
        image.save(folder / f"a.{suffix}")


def _read_pictures(folder: Path) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = folders.list_images(folder)
        return {file.name: pictures.read_image(file) for file in files}


def _write_captions(folder: Path) -> None:
    lines = []
    for i in range(3):
        PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def _read_captions(folder: Path) -> Values:
    paths, texts = captions.read_folder(folder)[:2]
    return {path.name: text for path, text in zip(paths, texts, strict=True)}


def _write_reference(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "reference.npz", mu=rng.standard_normal(4), sigma=np.eye(4))
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (2, 4, 4, 3), np.uint8))


def _read_reference(folder: Path) -> Values:
    found = reference.load_statistics(folder / "reference.npz").features
    images = reference.load_array(folder / "images.npz", ("images", "arr_0"))
    return {"mean": found.mean, "covariance": found.covariance, "images": np.asarray(images)}


def _write_latents(folder: Path) -> None:
    rows = {"latent": np.ones((4, 2, 2, 3), "f4"), "label": np.zeros(4, "i4")}
    latents.write(
        folder, [rows], count=4, image_shape=(4, 4, 3), num_classes=0, levels=256, encoder="x"
    )


def _read_latents(folder: Path) -> Values:
    return latents.open_folder(folder).read([0, 3])


_PROMPT = dict(
    model="model", prompt=["a cat"], negative="", steps=5, guidance=7.5, seed=3, height=64,
    width=64, sampler="ddim", eta=0.0, rescale=0.0, strength=0.8, refiner_start=0.8, clip_skip=0,
    version=1,
)  # fmt: skip
# As the flags; what is between 0 and 1 is "s".
_NUMBERS = dict(
    steps="i", guidance="n?l", seed="nwl", height="nw", width="nw", eta="n?l", rescale="s",
    strength="s?", refiner_start="s", clip_skip="nw",
)  # fmt: skip


def _write_settings(folder: Path) -> None:
    _save_settings(folder / "settings.png", json.dumps(_PROMPT))


def _save_settings(path: Path, text: str) -> None:
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add_text(image_options.ENTRY, text)
    PIL.Image.new("RGB", (4, 4)).save(path, pnginfo=notes)


def _read_settings(folder: Path) -> Values:
    return {"settings": json.dumps(image_options.read_png(folder / "settings.png").to_dict())}


def _change_settings(path: Path, rng: random.Random) -> Change:
    """Settings as JSON in a picture that is whole."""
    new = change_json(json.dumps(_PROMPT).encode(), rng, _NUMBERS)
    _save_settings(path, (new.raw or b"").decode("latin-1"))
    return new._replace(raw=path.read_bytes())


# ---- our own ------------------------------------------------------------------------------------


def _own_config() -> dict[str, Any]:
    cfg = ddpm.VARIANTS["digits"]()
    cfg.network.update(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), norm_groups=4)
    return json.loads(cfg.to_json())


def _read_config(folder: Path) -> Values:
    file = folder / "config.json"
    cfg = read_config(file)
    with naming(file):
        runs.build_model(cfg)
    return {"config": cfg.to_json(sort_keys=True)}


def _write_export(folder: Path) -> None:
    notes = {NOTE: json.dumps(_own_config()), "diffjax.step": "7"}
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype("f4")
    tensors = {"dense.weight": rows, "extra['scale']": np.float32([1.5])}
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors", notes)


def _read_export(folder: Path) -> Values:
    file = folder / "weights.safetensors"
    cfg = read_config(file)
    like = State(0, None, {"dense": {"kernel": np.zeros((4, 3), "f4")}}, None,
                         {"scale": np.zeros(1, "f4")})  # fmt: skip
    found = read_export(file, like)
    return {
        "config": cfg.to_json(sort_keys=True),
        "step": int(found.step),
        "scale": np.asarray(found.extra["scale"]),
        **to_state_dict(found.ema),
    }


def _write_checkpoint(folder: Path) -> None:
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, {"w": np.arange(6, dtype="f4")}, {"config": None})


def _read_checkpoint(folder: Path) -> Values:
    checkpoints = Checkpoints(folder / "checkpoints")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"w": jax.ShapeDtypeStruct((6,), np.float32, sharding=device)}
    found = checkpoints.restore(like)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {folder / 'checkpoints'}")
    return {"step": found[0], "w": np.asarray(found[1]["w"])}


_UNET = dict(
    in_channels="i", out_channels="i", flip_sin_to_cos="b", layers_per_block="i",
    norm_num_groups="i", cross_attention_dim="i", attention_head_dim="i", _class_name="t",
)  # fmt: skip
_VAE = dict(
    in_channels="i", out_channels="i", latent_channels="i", layers_per_block="i",
    norm_num_groups="i", scaling_factor="p", _class_name="t",
)  # fmt: skip
_TEXT = dict(
    vocab_size="i", max_position_embeddings="i", hidden_size="i", intermediate_size="i",
    num_hidden_layers="i", num_attention_heads="i", projection_dim="i", hidden_act="t",
    layer_norm_eps="p", eos_token_id="n",
)  # fmt: skip
_SCHEDULER = dict(
    num_train_timesteps="i", beta_start="p", beta_end="p", beta_schedule="t", clip_sample="b",
    set_alpha_to_one="b", steps_offset="n", prediction_type="t", timestep_spacing="t",
    dynamic_thresholding_ratio="p", sample_max_value="p", thresholding="b", _class_name="t",
    rescale_betas_zero_snr="b", clip_sample_range="p",
)  # fmt: skip
_SAID = {**generate_cases.SCHEDULER, "thresholding": True, "dynamic_thresholding_ratio": 0.9,
         "sample_max_value": 2.0, "rescale_betas_zero_snr": False,
         "clip_sample_range": 1.0}  # fmt: skip
_EDM = dict(
    _class_name="EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0,
    num_train_timesteps=1000,
)  # fmt: skip
_CLIP = {**sd_cases.TEXTS["clip"], "layer_norm_eps": 1e-5}

FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, _read_safetensors, says=_library),
    "pickle (zip)": Format(
        lambda folder: shutil.copy(GOLDEN / "new.pth", folder / "model.pth") and None,
        _read_pickle,
        says=_pickle_says,
    ),
    "pickle (old)": Format(
        lambda folder: shutil.copy(GOLDEN / "old.pth", folder / "model.pth") and None,
        _read_pickle,
        says=_pickle_says,
    ),
    "UNet": Format(_write_network(sd_cases.UNETS["sd1"]), _read_network, _UNET),
    "autoencoder": Format(
        _write_network({**ae_cases.AUTOENCODERS["kl"], "scaling_factor": 0.2}), _read_network, _VAE
    ),
    "text encoder": Format(_write_network(_CLIP), _read_network, _TEXT),
    "shards": Format(_write_network(_CLIP, shard=4000), _read_network, _TEXT),
    "ControlNet": Format(_write_network(generate_cases.CONTROLS["sd1"]), _read_network, _UNET),
    "scheduler": Format(_write_json(schedulers.FILE, _SAID), _read_scheduler, _SCHEDULER),
    "scheduler of EDM": Format(
        _write_json(schedulers.FILE, _EDM),
        _read_scheduler,
        dict(sigma_min="p", sigma_max="p", sigma_data="p", rho="p", num_train_timesteps="i"),
    ),
    "tokenizer (vocab)": Format(_write_older, _read_tokenizer, dict(model_max_length="i?l")),
    "tokenizer (json)": Format(_write_newer, _read_tokenizer, dict(model_max_length="i?l")),
    "model_index": Format(
        lambda folder: (
            shutil.copy(
                Path(__file__).parents[2] / "docs/results/models/small-model/model_index.json",
                folder,
            )
            and None
        ),
        _read_manifest,
        dict(_class_name="t"),
    ),
    "LoRA": Format(_write_adapter, _read_adapter),
    "textual inversion": Format(_write_concept, _read_concept),
    "idx.gz": Format(_write_idx, _read_idx),
    "pictures": Format(_write_pictures, _read_pictures),
    "PNG settings": Format(_write_settings, _read_settings),
    "captions": Format(_write_captions, _read_captions),
    "npz": Format(_write_reference, _read_reference),
    "latents": Format(_write_latents, _read_latents),
    "config.json": Format(_write_json("config.json", _own_config()), _read_config),
    "exported": Format(_write_export, _read_export),
    "checkpoint": Format(_write_checkpoint, _read_checkpoint, sealed=True),
}


def change(folder: Path, form: Format, rng: random.Random) -> tuple[Path, Change]:
    """Change one file of an example."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    file = rng.choice([f for f in files if f.suffix == ".json"] or files)
    if rng.random() < 0.4:
        file = rng.choice(files)
    raw = file.read_bytes()
    if rng.random() < 0.03:
        new = Change(None, "removed")
    elif file.name == "settings.png" and rng.random() < 0.8:
        new = _change_settings(file, rng)
    elif file.suffix == ".json" and raw:
        new = change_json(raw, rng, form.checked)
    elif file.suffix == ".safetensors":
        new = change_safetensors(raw, rng)
    elif file.suffix in (".npz", ".pth") and raw[:2] == b"PK":
        new = change_zip(raw, rng)
    elif file.suffix == ".gz":
        new = change_gzip(raw, rng)
    elif file.suffix == ".jsonl":
        lines = raw.splitlines()
        at = rng.randrange(len(lines))
        new = change_json(lines[at], rng, {"file_name": "t", "text": "te"})
        new = new._replace(raw=b"\n".join([*lines[:at], new.raw or b"", *lines[at + 1 :]]))
    else:
        new = change_bytes(raw, rng)
    if new.raw is None:
        file.unlink()
    else:
        file.write_bytes(new.raw)
    return file, new
