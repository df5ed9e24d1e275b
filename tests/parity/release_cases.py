"""Two steps of training beside the code that was released with a paper.

Weights, data, times and noise are equal, and the weights of all layers are random, also of those
that begin at zero. A release is a checkout in a folder of the name of its repository; its code is
run, and nothing of it is here.
"""

import importlib
import re
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

from configs import autoencoder, edm, improved_ddpm, score_sde
from diffjax.data.formats import halve_crop_at
from diffjax.pretrained.single_file import rename_unet_key
from diffjax.pretrained.single_file_parts import rename_autoencoder_key
from diffjax.tasks import make_autoencoder_task, make_task
from diffjax.tasks.augment import make_matrix, warp
from diffjax.train.optimizer import make_optimizer
from tests.parity.layout import nchw
from tests.parity.ncsn_cases import ncsn, ncsnv2
from tests.parity.release_steps import (
    BATCH,
    SIDE,
    compare,
    draw_step,
    drawing,
    make_small,
    make_times_of,
    on_path,
    shake,
)

# ---- improved-diffusion --------------------------------------------------------------------------


def improved_diffusion(folder):
    """The hybrid loss with a learned variance, on 4000 cosine steps."""
    config = make_small(
        improved_ddpm.cifar10(), channels=64, multipliers=(1, 2), attention_levels=(1,)
    )
    task, times = make_task(config, (SIDE, SIDE, 3)), make_times_of(config)
    torch.manual_seed(0)
    with on_path(folder):
        script = importlib.import_module("improved_diffusion.script_util")
        unet = importlib.import_module("improved_diffusion.unet")
        net = shake(
            unet.UNetModel(
                in_channels=3, model_channels=64, out_channels=6, num_res_blocks=1,
                attention_resolutions=(2,), channel_mult=(1, 2), num_heads=4,
                use_scale_shift_norm=True,
            )
        )  # fmt: skip
        process = script.create_gaussian_diffusion(
            steps=4000, learn_sigma=True, noise_schedule="cosine", rescale_timesteps=True,
            rescale_learned_sigmas=True,
        )  # fmt: skip

        def theirs(images, labels, key, extra):
            t, eps = draw_step(key, config, times, extra, images.shape)
            terms = process.training_losses(
                net, nchw(images), torch.from_numpy(t).long(), noise=nchw(eps)
            )
            return terms["loss"].mean()

        return compare(
            task, make_optimizer(config.optim, 10), net, _convert_openai, theirs,
            torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0),
        )  # fmt: skip


def _convert_openai(state):
    out = {}
    for key, value in state.items():
        name = rename_unet_key(key, 1)
        if m := re.fullmatch(r"(.*attentions\.\d+)\.(norm|qkv|proj_out)\.(\w+)", name):
            value = value[..., 0] if value.ndim == 3 else value
            if m[2] == "qkv":  # heads, then queries, keys and values
                parts = value.reshape(4, 3, -1, *value.shape[1:])
                for k, part in enumerate(("to_q", "to_k", "to_v")):
                    out[f"{m[1]}.{part}.{m[3]}"] = parts[:, k].reshape(-1, *value.shape[1:])
                continue
            name = f"{m[1]}.{'group_norm' if m[2] == 'norm' else 'to_out.0'}.{m[3]}"
        out[name] = value
    return out


# ---- EDM -----------------------------------------------------------------------------------------


def edm_cifar10(folder):
    """The preconditioned DDPM++ network with classes, and EDM's loss."""
    config = make_small(
        edm.cifar10_cond(), channels=128, multipliers=(1, 1), attention_levels=(1,), augment_dim=0
    )
    config.optim.lr_start = None
    task, times = make_task(config, (SIDE, SIDE, 3), num_classes=10), make_times_of(config)
    torch.manual_seed(0)
    with on_path(folder):
        networks = importlib.import_module("training.networks")
        loss = importlib.import_module("training.loss").EDMLoss()
        net = shake(
            networks.EDMPrecond(
                SIDE, 3, label_dim=10, model_type="SongUNet", model_channels=128, num_blocks=1,
                channel_mult=[1, 1], attn_resolutions=[SIDE // 2], dropout=0.0,
                embedding_type="positional", encoder_type="standard", decoder_type="standard",
                channel_mult_noise=1, resample_filter=[1, 1],
            )
        )  # fmt: skip

        def theirs(images, labels, key, extra):
            t, eps = draw_step(key, config, times, extra, images.shape)
            normal = torch.from_numpy((4 * t + 1.2) / 1.2).reshape(-1, 1, 1, 1)
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 10).float()
            with drawing(randn=[normal], randn_like=[nchw(eps)]):
                return loss(net, nchw(images), one_hot).sum() / BATCH

        return compare(
            task, make_optimizer(config.optim, 10), net, _convert_edm, theirs,
            torch.optim.Adam(net.parameters(), lr=1e-3), classes=10,
        )  # fmt: skip


def augment_images(folder, shape=(16, 12, 12, 3), seed=0):
    """The largest error of a moved pixel by image, where ours moves by the release's labels."""
    images = np.random.default_rng(seed).uniform(-1, 1, shape).astype("f4")
    torch.manual_seed(seed)
    with on_path(folder):
        pipe = importlib.import_module("training.augment").AugmentPipe(
            p=0.5, xflip=1, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
        )
        wanted, labels = (x.numpy() for x in pipe(nchw(images)))
    wanted = wanted.transpose(0, 2, 3, 1)
    flipped = np.where(labels[:, 0, None, None, None] != 0, images[:, :, ::-1], images)
    flipped = np.where(labels[:, 1, None, None, None] != 0, flipped[:, ::-1], flipped)
    scale, angle = labels[:, 2], np.arctan2(labels[:, 4], labels[:, 3] + 1)
    errors = []
    for sign in (1, -1):  # a label leaves the sign of the anisotropy open
        aniso = sign * np.hypot(labels[:, 5], labels[:, 6])
        direction = np.arctan2(sign * labels[:, 6], sign * labels[:, 5])
        matrices = jax.vmap(make_matrix)(scale, angle, aniso, direction)
        found = warp(jnp.asarray(flipped), matrices, labels[:, :-3:-1] / 8)
        errors.append(np.abs(found - wanted).max((1, 2, 3)))
    return np.minimum(*errors)


def crop_after(folder, sides, draws, size=16):
    """Our crop of a picture and that of ADM's classifiers, for the same draws in [0, 1)."""
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    share, top, left = draws
    ours = halve_crop_at(image, size, share=share, place=(top, left), bounds=(0.8, 1.0))
    stubs = {name: types.ModuleType(name) for name in ("blobfile", "mpi4py")}
    stubs["mpi4py"].MPI = None  # the module reads files and shares them, which crops do not need
    shares = iter(draws)

    def draw(start, stop=None):
        low, high = (0, start) if stop is None else (start, stop)
        return low + int(next(shares) * (high - low))

    with on_path(folder), mock.patch.dict(sys.modules, stubs):
        data = importlib.import_module("guided_diffusion.image_datasets")
        with mock.patch.object(data.random, "randrange", draw):
            return ours, data.random_crop_arr(Image.fromarray(image), size)


_EDM_PARTS = {
    "norm0": "norm1", "conv0": "conv1", "affine": "time_emb_proj", "norm1": "norm2",
    "conv1": "conv2", "skip": "conv_shortcut",
}  # fmt: skip
_EDM_OUTER = {
    "map_label": "class_embedding", "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
}  # fmt: skip


def _convert_edm(state):
    out = {}
    for key, value in state.items():
        module, _, leaf = key.removeprefix("model.").rpartition(".")
        if module in _EDM_OUTER:
            out[f"{_EDM_OUTER[module]}.{leaf}"] = value
            continue
        side, block, *part = module.split(".")
        resolution, _, name = block.partition("_")
        level = int(np.log2(SIDE // int(resolution.partition("x")[0])))
        up = 1 - level  # counted from the coarsest
        named = {
            "conv": "conv_in",
            "down": f"down_blocks.{level - 1}.downsamplers.0",
            "in0": "mid_block.resnets.0",
            "in1": "mid_block.resnets.1",
            "up": f"up_blocks.{up - 1}.upsamplers.0",
            "aux_norm": "conv_norm_out",
            "aux_conv": "conv_out",
        }
        if name in named:
            place, number = named[name], "0"
        else:
            number = name.removeprefix("block")
            place = f"{side and ('down' if side == 'enc' else 'up')}_blocks."
            place += f"{level if side == 'enc' else up}.resnets.{number}"
        if not part:
            out[f"{place}.{leaf}"] = value
        elif part[0] in _EDM_PARTS:
            out[f"{place}.{_EDM_PARTS[part[0]]}.{leaf}"] = value
        else:
            value = value[..., 0, 0] if value.ndim == 4 else value
            _put_attention(out, place.replace("resnets", "attentions"), part[0], leaf, value)
    # Of a level on the way up the last block attends, which is named as its block.
    return out


def _put_attention(out, place, part, leaf, value):
    if part == "qkv":  # channels, then queries, keys and values
        for k, name in enumerate(("to_q", "to_k", "to_v")):
            out[f"{place}.{name}.{leaf}"] = value.reshape(-1, 3, *value.shape[1:])[:, k]
    else:
        out[f"{place}.{'group_norm' if part == 'norm2' else 'to_out.0'}.{leaf}"] = value


# ---- score_sde -----------------------------------------------------------------------------------


def score_sde_vp(folder):
    """DDPM++ on the VP SDE, continuous times."""
    return _score_sde(folder, likelihood=False)


def score_sde_likelihood(folder):
    """The same with likelihood weights."""
    return _score_sde(folder, likelihood=True)


def _score_sde(folder, *, likelihood):
    config = make_small(
        score_sde.ddpmpp_vp(), channels=128, multipliers=(1, 1), attention_levels=(1,)
    )
    config.optim.lr_start = None
    if likelihood:
        config.loss.weight = "likelihood"
    task, times = make_task(config, (SIDE, SIDE, 3)), make_times_of(config)
    torch.manual_seed(0)
    with on_path(folder):
        settings = importlib.import_module("configs.vp.cifar10_ddpmpp_continuous").get_config()
        settings.data.image_size = SIDE
        settings.model.update(nf=128, ch_mult=(1, 1), num_res_blocks=1, dropout=0.0)
        settings.model.attn_resolutions = (SIDE // 2,)
        net = shake(importlib.import_module("models.ncsnpp").NCSNpp(settings))
        sde = importlib.import_module("sde_lib").VPSDE(0.1, 20.0, 1000)
        loss = importlib.import_module("losses").get_sde_loss_fn(
            sde, train=True, reduce_mean=True, continuous=True, likelihood_weighting=likelihood
        )

        def theirs(images, labels, key, extra):
            t, eps = draw_step(key, config, times, extra, images.shape)
            share = torch.from_numpy((t - 1e-5) / (1 - 1e-5))
            with drawing(rand=[share], randn_like=[nchw(eps)]):
                return loss(net, nchw(images))

        optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
        step = optimizer.step

        def clipped():
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
            step()

        optimizer.step = clipped
        return compare(
            task, make_optimizer(config.optim, 10), net, _convert_score_sde, theirs, optimizer
        )


_SONG_PARTS = {
    "GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time_emb_proj", "GroupNorm_1": "norm2",
    "Conv_1": "conv2", "Conv_2": "conv_shortcut",
}  # fmt: skip
# Modules in their order: two levels of one block, with attention at the second.
_SONG_ORDER = (
    "time_embedding.linear_1", "time_embedding.linear_2", "conv_in", "down_blocks.0.resnets.0",
    "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0", "down_blocks.1.attentions.0",
    "mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1",
    "up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.0.attentions.1",
    "up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0", "up_blocks.1.resnets.1",
    "conv_norm_out", "conv_out",
)  # fmt: skip
_NIN = {"NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out.0"}


def _convert_score_sde(state):
    out = {}
    for key, value in state.items():
        _, number, *rest = key.split(".")
        place = _SONG_ORDER[int(number)]
        if len(rest) == 1:
            out[f"{place}.{rest[0]}"] = value
        elif rest[0] in _NIN:
            leaf, value = ("weight", value.T) if rest[1] == "W" else ("bias", value)
            out[f"{place}.{_NIN[rest[0]]}.{leaf}"] = value
        elif "attentions" in place:
            out[f"{place}.group_norm.{rest[1]}"] = value
        else:
            out[f"{place}.{_SONG_PARTS[rest[0]]}.{rest[1]}"] = value
    return out


# ---- latent diffusion's first stage --------------------------------------------------------------


def first_stage(folder, taming):
    """A VQ autoencoder before its discriminator begins; without the perceptual distance."""
    config = autoencoder.vq_f4()
    config.network.update(channels=32, multipliers=(1, 2), blocks=1, norm_groups=32, codes=16)
    config.data.update(image_size=SIDE, batch_size=BATCH)
    config.loss.update(perceptual="none", disc_start=100, disc_layers=1, disc_channels=4)
    config.optim.lr = 1e-4
    del config.optim["groups"]
    task = make_autoencoder_task(config, (SIDE, SIDE, 3))
    torch.manual_seed(0)
    with on_path(folder, taming):
        _forget_lpips()
        model = importlib.import_module("ldm.modules.diffusionmodules.model")
        quantize = importlib.import_module("taming.modules.vqvae.quantize")
        options = dict(
            ch=32, out_ch=3, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), in_channels=3,
            resolution=SIDE, z_channels=3, dropout=0.0,
        )  # fmt: skip
        net = torch.nn.Module()
        net.encoder = model.Encoder(double_z=False, **options)
        net.decoder = model.Decoder(**options)
        net.quantize = quantize.VectorQuantizer2(16, 3, beta=0.25)
        net.quant_conv = torch.nn.Conv2d(3, 3, 1)
        net.post_quant_conv = torch.nn.Conv2d(3, 3, 1)
        shake(net)
        losses = importlib.import_module("taming.modules.losses.vqperceptual")
        judge = losses.VQLPIPSWithDiscriminator(
            disc_start=100, disc_weight=0.75, disc_num_layers=1, disc_ndf=4
        )

        def theirs(images, labels, key, extra):
            x = nchw(images)
            code, pull, _ = net.quantize(net.quant_conv(net.encoder(x)))
            out = net.decoder(net.post_quant_conv(code))
            return judge(pull, x, out, 0, 0, net.decoder.conv_out.weight)[0]

        return compare(
            task, make_optimizer(config.optim, 10), net, _convert_first_stage, theirs,
            torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9)),
        )  # fmt: skip


def _forget_lpips():
    """Stand in for the perceptual network, which the release would download."""
    stub = types.ModuleType("taming.modules.losses.lpips")
    stub.LPIPS = type(
        "LPIPS", (torch.nn.Module,), {"forward": lambda self, x, y: torch.zeros(len(x), 1, 1, 1)}
    )
    sys.modules["taming.modules.losses.lpips"] = stub


def _convert_first_stage(state):
    out = {}
    for key, value in state.items():
        name = rename_autoencoder_key(key, 2)
        if "attentions" in name and value.ndim == 4:
            value = value[..., 0, 0]
        out[name] = value
    return out


CASES = {
    "ncsn": (ncsn, ("ncsn",)),
    "ncsnv2": (ncsnv2, ("ncsnv2",)),
    "improved-diffusion": (improved_diffusion, ("improved-diffusion",)),
    "edm": (edm_cifar10, ("edm",)),
    "score_sde_pytorch": (score_sde_vp, ("score_sde_pytorch",)),
    "score_sde_pytorch, likelihood weights": (score_sde_likelihood, ("score_sde_pytorch",)),
    "latent-diffusion, first stage with VQ": (
        first_stage,
        ("latent-diffusion", "taming-transformers"),
    ),
}
