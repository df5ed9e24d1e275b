"""The sections of a config with their defaults, which are DDPM's, as tables.

A section names a choice and holds options for it. A section may hold options of several choices,
so ``schedule.name="cosine"`` works by itself. An option that is `Open` has the default of what is
chosen (`diffjax.config.choices`) until a config or a flag sets it; options that no choice knows are
errors. `diffjax.config.make` makes configs of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Open(NamedTuple):
    """An option without a value, of this type."""

    kind: type


class Sides(NamedTuple):
    """A number of pixels that may become (height, width)."""

    pixels: int


def leave_open(kind: type, *names: str) -> dict[str, Open]:
    """Options that have the default of what is chosen."""
    return {name: Open(kind) for name in names}


DEFAULTS: Mapping[str, Any] = {
    "task": "diffusion",
    "seed": 0,
    "data": {
        "name": "digits",
        "split": "train",
        "dir": "",  # where the data set is; empty: the usual places
        "image_size": Sides(8),  # pixels on a side, or (height, width)
        "channels": 1,
        "background": "white",  # behind transparent pixels of folders; or #rrggbb
        "levels": 256,  # grey values, for the discretised decoder
        "num_classes": 0,
        "batch_size": 128,
        "flip": False,
        "crop": "center",  # or random, of pictures that are larger than image_size
        "crop_share": (1.0, 1.0),  # of random crops: side over the largest, drawn between these
        "dequantize": False,  # add uniform noise of the size of a grey level
        "augment": 0.0,  # probability of each of EDM's augmentations
        "threads": 2,  # that read ahead, in each process
        "prefetch": 2,  # batches read ahead; those on the devices come on top
        "bucket_step": 0,  # pixels between the sides of aspect-ratio buckets; 0: squares
        "bucket_ratio": 2.0,  # of the longest bucket
        "longest_side": 64,  # of pictures whose size is left open (image_size=0)
        "caption_column": "",  # of metadata files; empty: text, caption or prompt
        "damaged": "stop",  # or skip: another picture takes the place of a damaged one
    },
    "network": {
        "name": "unet",
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention_levels": (1,),
        "heads": 1,
        "head_channels": 0,
        "dropout": 0.0,
        "scale_shift": False,
        "resblock_updown": False,
        "conditional": False,
        "flip_sin_to_cos": False,
        "freq_shift": 1.0,
        "time_scale": 1.0,
        "downsample_padding": 0,
        "norm_groups": 32,
        "norm_eps": 1e-6,
        "patch": 1,
        "attention": "xla",  # or plain, chunked, cudnn
        "decoder_attention": "all",  # or last, of each level on the way up
        "fir": False,
        "rescale": False,
        "project": False,
        "fourier_scale": 0.0,
        "progressive_input": False,
        "augment_dim": 0,
        "class_embedding": "after",  # or before, the layers of the time embedding
        "head": "dense",  # of a classifier, or direct: see diffjax.nets.noisy_classifier
        "initialisation": "ddpm",  # or score_sde, adm, torch: see diffjax.nets.initialisation
        "context_dim": 0,  # width of the tokens to attend to; 0: none
        "added_dim": 0,  # size of the added condition of Stable Diffusion XL; 0: none
        "added_time_dim": 256,  # size of the embedding of each of its numbers
        "remat": "none",  # or blocks, products: what is computed again to save memory
        "dtype": "float32",  # computation; parameters stay float32
    },
    "schedule": {
        "name": "linear",
        "steps": 1000,
        "zero_snr": False,
        **leave_open(float, "beta_start", "beta_end"),  # linear, scaled_linear
        **leave_open(float, "s", "max_beta"),  # cosine; sigmoid has max_beta too
        **leave_open(float, "start", "end", "tau"),  # sigmoid
        **leave_open(float, "beta_min", "beta_max"),  # vp_sde, sub_vp
        **leave_open(float, "sigma_min", "sigma_max"),  # ve, ve_discrete, edm
        **leave_open(float, "logsnr_min", "logsnr_max"),  # log_snr
        **leave_open(float, "shift", "t_min", "t_max"),  # flow; vp_sde and sub_vp have t_min
    },
    "parameterization": {
        "name": "eps",
        "learned_variance": False,
        **leave_open(float, "sigma_data"),  # edm, of the network and of the loss weight
    },
    "loss": {
        "name": "simple",  # simple, vlb, hybrid
        "weight": "simple",  # simple, snr, p2, min_snr, edm, likelihood
        "variance": "fixedsmall",  # of the bound
        "vlb_weight": 1e-3,
        "distance": "l2",  # or l1, of the simple loss
        "reduction": "mean",  # or sum, half_sum: of the simple loss over the pixels of an image
        **leave_open(float, "gamma", "k"),  # min_snr has gamma, p2 both
    },
    "times": {
        "name": "uniform",
        **leave_open(float, "share"),  # uniform, low_discrepancy: those with the least noise
        **leave_open(float, "mean", "std"),  # log_normal, logit_normal
        **leave_open(int, "history"),  # loss_second_moment
        **leave_open(float, "uniform_prob"),
    },
    "cond": {
        "drop": 0.0,  # probability of training without the condition (p_uncond)
        "null": "learned",  # embedding of no condition: learned, zero
        "context": "",  # tokens to attend to: label, text, clip, clip_xl, given
        "words": "",  # captions: the tokens are the words of the captions of the data
        "given": {"tokens": 77, "pooled": 1280},  # sizes of embeddings made beforehand
        "concat": "",  # channels joined to z: superres, inpaint, fill, map
        "map_classes": 0,  # of the semantic map
        "weights": "",  # of a frozen text encoder, as a folder of transformers
        "empty": (),  # ids of the empty text, the last one fills up; none: zeros
    },
    "optim": {
        "name": "adam",  # or another optimiser of optax: train.optimizer.OPTIMIZERS
        "lr": 2e-4,
        "warmup": 5000,
        "decay": "constant",
        "clip": 1.0,
        "lr_start": Open(float),  # of the warm-up: a fraction of lr; open: lr / warmup
        **leave_open(float, "lr_end"),  # cosine, linear: a fraction of lr
        **leave_open(int, "decay_steps"),  # where they end; open: with the run
        **leave_open(float, "b1", "b2", "eps"),  # adam, adamw and most others
        **leave_open(float, "weight_decay"),  # adamw, lion, lamb, muon and others
        **leave_open(float, "momentum"),  # sgd, rmsprop, lars and others
        **leave_open(bool, "nesterov"),  # adam, adamw, sgd and others
    },
    "ema": {
        "decay": 0.9999,
        "warmup": False,
        "half_life": 0,  # in images, instead of decay
        "ramp": 0.05,  # the half-life is at most this share of the images seen
    },
    "train": {
        "steps": 800_000,
        "minutes": 0.0,  # stop and save after this wall-clock; 0: no limit
        "accumulate": 1,
        "log_every": 100,
        "checkpoint_every": 5000,
        "sample_every": 10_000,
        "evaluate_every": 0,  # a multiple of log_every; 0: never
        "keep": 2,
        "nonfinite": "stop",  # a loss that is: stop, skip the step, or rollback
        "trackers": (),  # beside metrics.jsonl and TensorBoard: wandb, trackio
        "override": False,  # resume although config, shapes or frozen weights differ
    },
    "sample": {
        "sampler": "ddpm",
        **leave_open(str, "variance"),  # ddpm, pc: fixedsmall, fixedlarge, learned, or a number
        **leave_open(float, "eta"),  # ddim
        **leave_open(float, "gamma"),  # tcd
        **leave_open(float, "timestep_scaling"),  # lcm
        **leave_open(float, "s_churn", "s_tmin", "s_tmax", "s_noise"),  # heun
        **leave_open(float, "snr"),  # pc
        **leave_open(int, "corrections"),
        **leave_open(str, "norm"),
        **leave_open(int, "steps_per_level"),  # langevin
        **leave_open(float, "step_size"),
        **leave_open(bool, "denoise"),
        **leave_open(str, "rule", "start"),
        **leave_open(float, "rtol", "atol"),  # rk45
        **leave_open(int, "order"),  # lms, ipndm, deis
        **leave_open(bool, "lower_order_final"),  # dpmpp_2m and its like, unipc, deis
        **leave_open(bool, "euler_at_final"),  # dpmpp_2m and its like
        **leave_open(str, "solver_type"),
        "grid": "leading",
        "steps": 1000,
        **leave_open(float, "rho", "sigma_min", "sigma_max"),  # karras
        **leave_open(float, "a", "b"),  # beta
        **leave_open(float, "fraction"),  # quadratic
        **leave_open(int, "original_steps"),  # lcm
        **leave_open(int, "offset"),  # leading
        **leave_open(float, "t_end"),  # uniform: the last time
        **leave_open(str, "final"),  # where grids end: clean, first, last
        "clip": True,
        "guidance": 1.0,  # s = 1 + w; 1: none
        "classifier": "",  # file of experiments.export that guides instead, with that scale
        "guidance_low": 0.0,  # only at sigma / alpha from here
        "guidance_high": 1e9,  # to here
        "guidance_rescale": 0.0,
        "guidance_sequential": False,  # two passes: slower, half the memory
        "num": 64,
        "batch_size": 64,
    },
    "eval": {
        "num": 50_000,
        "features": "",  # frozen classifier for distances; empty: none for this data
        "bits_images": 1000,
        "loop_num": 1000,  # images of an evaluation in training
        "best": "distance",  # which of its measures best/ goes by; empty: keep none
        "best_mode": "min",
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
}


# In place of those of DEFAULTS, for the first stage of latent diffusion.
FIRST_STAGE: Mapping[str, Any] = {
    "network": {
        "name": "kl",  # or vq
        "channels": 128,
        "multipliers": (1, 2, 4, 4),  # each level after the first halves the resolution
        "blocks": 2,
        "attention_levels": (),
        "latent_channels": 4,
        "norm_groups": 32,
        "middle_attention": True,
        "initialisation": "ddpm",  # or torch
        "codes": 8192,  # vq: size of the codebook
        "code_channels": 0,  # vq: of a code; 0: latent_channels
        "attention": "xla",
        "remat": False,
        "dtype": "float32",
    },
    "loss": {
        "pixel": "l1",  # or l2
        "perceptual": "lpips",  # or classifier (of diffjax.metrics), none
        "perceptual_weight": 1.0,
        "perceptual_weights": "",  # lpips: file; classifier: file, or data set if another
        "kl_weight": 1e-6,
        "codebook_weight": 1.0,
        "commitment_weight": 0.25,
        "dead": 0.1,  # codes used less than this share of the mean move to a latent; 0: none
        "disc_weight": 0.5,  # 0: no discriminator
        "disc_start": 50_001,
        "disc_channels": 64,
        "disc_layers": 3,
        "adaptive": True,  # balance by gradients at the last layer
    },
}

# What configs have beside DEFAULTS if they fine-tune a published model or train an adapter.
OPTIONAL: Mapping[str, Any] = {
    "model": {
        "path": "",  # diffusers folder, single .safetensors file, or random
        "tokenizer": "",  # folder; needed beside a single file
    },
    "control": {
        "base": "",  # workdir, or exported .safetensors; unless there is a section model
        # The others are options of canny.
        "hint": {"name": "canny", "low": 0.05, "high": 0.1, "sigma": 1.0, "norm": "l2"},
        "net": {
            "name": "controlnet",  # or t2i_adapter
            "hint_channels": 3,
            "hint_widths": (16, 32, 96, 256),
            "hint_factor": 8,  # pixels of the hint per pixel of z
            "hint_encoder": "released",  # or paper
            "connections": "zero",  # or gaussian
            "lite": False,
            "kind": "full",  # and these of t2i_adapter: full, full_xl, light
            "blocks": 2,
        },
        "only_middle": False,  # no residuals on the skips
        "train_decoder": False,  # train the base's decoder too
        "balance": "balanced",  # or prompt, control, guess, resolution
    },
    "lora": {
        "rank": 16,
        "alpha": 16.0,  # what is added is alpha / rank B A
        "targets": ("to_q", "to_k", "to_v", "to_out.0"),  # ends of dotted names of layers
    },
}
