"""The sections of a config with their defaults, which are DDPM's, as tables.

A section names a choice and holds options for it. A section may hold options of several choices,
so ``schedule.name="cosine"`` works by itself. An `OpenOption` has the default of what is chosen
(`diffjax.config.choices`) until a config or a flag sets it; options that no choice knows are
errors. `diffjax.config.make` makes configs of the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffjax.config.open_options import SizeOption, leave_open

if TYPE_CHECKING:
    from diffjax.types import Config  # not before: it takes a second

DEFAULTS: Config = {
    # What is trained: a name in `diffjax.tasks.TASKS`
    "task": "diffusion",
    # Seed of parameters, batches, times and noise
    "seed": 0,
    "data": {
        # A data set, or a kind of folder (diffjax.data)
        "name": "digits",
        # The split that is trained on
        "split": "train",
        # Where the data set is; empty: the usual places
        "dir": "",
        # Pixels on a side, or (height, width)
        "image_size": SizeOption(8),
        # 1 for grey images, 3 for RGB; 0 leaves it to the data
        "channels": 1,
        # Colour behind transparent pixels of folders: a name or #rrggbb
        "background": "white",
        # Grey values, for the discretised decoder
        "levels": 256,
        # Number of classes; 0 for none, and -1 leaves it to the data
        "num_classes": 0,
        # Images of a step, over all devices
        "batch_size": 128,
        # Exchange left and right at random
        "flip": False,
        # Where pictures are cropped that are larger than image_size: center; random; or
        # random_after, resized by halves to a random size before (ADM)
        "crop": "center",
        # What is kept of every picture first: (top, left, height, width) in pixels; (): all
        "window": (),
        # How pictures are resized: bicubic, lanczos (EDM), halves (first by averages, ADM), area
        "resize": "bicubic",
        # Side of random crops over that of the largest that fits, drawn between these
        "crop_share": (1.0, 1.0),
        # Small pictures of super-resolution: none (averages), bsrgan_light
        "degradation": "none",
        # Add uniform noise of the size of a grey level in training
        "dequantize": False,
        # Probability of each of EDM's augmentations
        "augment": 0.0,
        # They may turn pictures, and set them upside down; without, labels have 6 numbers of 9
        "augment_turns": True,
        # Threads that read ahead, in each process
        "threads": 2,
        # Batches read ahead; those on the devices come on top
        "prefetch": 2,
        # Pixels between the sides of aspect-ratio buckets; 0: squares
        "bucket_step": 0,
        # Ratio of the sides of the longest bucket
        "bucket_ratio": 2.0,
        # Longest side in pixels of images whose size is left open (image_size=0)
        "longest_side": 64,
        # Column of metadata files with the captions; empty: text, caption or prompt
        "caption_column": "",
        # Captions of all pictures of a folder, in place of its own; each comes with each of them
        "captions": (),
        # What is done about damaged images: stop, or skip (another image takes the place)
        "damaged": "stop",
    },
    "network": {
        # A network in `diffjax.model.build.NETWORKS`
        "name": "unet",
        # Width of the first level
        "channels": 128,
        # Width of each level over `channels`; each level halves the resolution
        "multipliers": (1, 2, 2, 2),
        # Residual blocks of a level on the way down; one more on the way up
        "blocks": 2,
        # Levels with attention; 0 has the full resolution, and the middle always has it
        "attention_levels": (1,),
        # Heads of attention: one number, or one for each level
        "heads": 1,
        # Channels of each head, which win over `heads`; 0: as `heads` says
        "head_channels": 0,
        # Probability of dropping an activation in training
        "dropout": 0.0,
        # The time scales and shifts the second norm, in place of being added before it
        "scale_shift": False,
        # Residual blocks resample, in place of strided convolutions (ADM)
        "resblock_updown": False,
        # The class is added to the time embedding
        "conditional": False,
        # Norms of a refinenet are told the index of the noise level (NCSN)
        "level_norms": False,
        # Order of the timestep embedding: False is DDPM's, True is OpenAI's
        "flip_sin_to_cos": False,
        # Spacing of its frequencies: 1 is DDPM's, 0 is OpenAI's
        "freq_shift": 1.0,
        # Factor on the time; 1000 for continuous time in [0, 1]
        "time_scale": 1.0,
        # Added then; with a negative factor the network is told the share of data
        "time_shift": 0.0,
        # 0 pads as TensorFlow does (DDPM), 1 as PyTorch does (Stable Diffusion)
        "downsample_padding": 0,
        # Groups of every norm; well below the narrowest width
        "norm_groups": 32,
        # Added to the variance in every norm
        "norm_eps": 1e-6,
        # Side of the pixel patches folded into channels (Hoogeboom et al. 2023)
        "patch": 1,
        # How attention is computed: auto (by the device), xla, plain, chunked, cudnn or splash
        "attention": "auto",
        # Attention on the way up after all blocks of a level, or after the last
        "decoder_attention": "all",
        # Resample by a filter, not by repeating and averaging (Song et al. 2021)
        "fir": False,
        # Divide sums of branches by sqrt(2) (Song et al. 2021)
        "rescale": False,
        # A 1x1 convolution on the shortcut of resampling blocks too
        "project": False,
        # Scale of random Fourier features of the time; 0: sines and cosines
        "fourier_scale": 0.0,
        # Add the shrunk image to every level (Song et al. 2021)
        "progressive_input": False,
        # Size of the label of EDM's augmentations; 0: none
        "augment_dim": 0,
        # Where the class joins: after the layers of the time embedding, or before
        "class_embedding": "after",
        # What follows the pooling of a classifier: dense, or direct (ADM's release)
        "head": "dense",
        # How parameters begin: ddpm, score_sde, adm or torch (diffjax.nets.initialisation)
        "initialisation": "ddpm",
        # Width of the tokens to attend to; 0: none
        "context_dim": 0,
        # Size of the added condition of Stable Diffusion XL; 0: none
        "added_dim": 0,
        # Size of the embedding of each of its numbers
        "added_time_dim": 256,
        # Size of the embeddings of time and span side by side (MeanFlow); 0: two embeddings
        "span_dim": 0,
        # What the backward pass computes again to save memory: none, products, blocks, or auto
        # (the first of these with which the step fits the device)
        "remat": "none",
        # Type of the computation; parameters stay float32
        "dtype": "float32",
    },
    "schedule": {
        # A schedule in `diffjax.schedules.SCHEDULES`
        "name": "linear",
        # Number of timesteps of a discrete schedule
        "steps": 1000,
        # Rescale to no signal at the last timestep (Lin et al. 2023)
        "zero_snr": False,
        **leave_open(float, "beta_start", "beta_end"),  # linear, scaled_linear
        **leave_open(float, "s", "max_beta"),  # cosine; sigmoid has max_beta too
        **leave_open(float, "start", "end", "tau"),  # sigmoid
        **leave_open(float, "beta_min", "beta_max"),  # vp_sde, sub_vp
        **leave_open(float, "sigma_min", "sigma_max"),  # ve, ve_discrete, edm
        **leave_open(float, "logsnr_min", "logsnr_max"),  # log_snr
        **leave_open(float, "shift", "t_min", "t_max"),  # flow; SDEs have t_min
    },
    "parameterization": {
        # What the network predicts: diffjax.parameterization.PARAMETERIZATIONS, or mean
        "name": "eps",
        # Predict the variance as well (Nichol & Dhariwal 2021)
        "learned_variance": False,
        **leave_open(float, "sigma_data"),  # edm, of the network and of the loss weight
        **leave_open(float, "score_scale"),  # score: 2 for pixels in [0, 1] (NCSN)
        **leave_open(float, "sigma_least"),  # consistency
    },
    "loss": {
        # The loss: diffjax.tasks.objective_table.OBJECTIVES
        "name": "simple",
        # The weight of the simple loss: diffjax.losses.WEIGHTS
        "weight": "simple",
        # Variance of the reverse steps in the bound: fixedsmall, fixedlarge or learned
        "variance": "fixedsmall",
        # Factor on the bound in the hybrid loss
        "vlb_weight": 1e-3,
        # Distance in the simple loss: l2 or l1
        "distance": "l2",
        # Noise that is constant over each channel of an image, added to the rest; 0: none
        "noise_offset": 0.0,
        # Noise that is added to the input of the network and not to its target; 0: none
        "input_perturbation": 0.0,
        # Which noise is added to which image: independent, or optimal within a batch
        "pairing": "independent",
        # Over the numbers of an image, in the simple loss: mean, sum or half_sum
        "reduction": "mean",
        # Divide the simple loss by a variance that is learned for each noise level (EDM2)
        "uncertainty": False,
        **leave_open(float, "gamma", "k"),  # min_snr has gamma, p2 both
        **leave_open(str, "spacing", "metric", "solver"),  # consistency
        **leave_open(int, "first", "last", "stages"),
        **leave_open(float, "base", "slope", "gain", "huber", "initial_decay"),
        **leave_open(bool, "by_step"),
        **leave_open(str, "perceptual_weights"),  # metric=lpips: a file
        **leave_open(float, "ratio", "power", "floor"),  # mean_flow
        **leave_open(int, "sections"),  # shortcut
        **leave_open(float, "share", "target_decay"),
        **leave_open(int, "student_steps", "teacher_steps"),  # progressive, reflow
    },
    "times": {
        # How training times are drawn: diffjax.losses.TIME_SAMPLERS
        "name": "uniform",
        **leave_open(float, "share"),  # uniform, low_discrepancy: those with the least noise
        **leave_open(float, "mean", "std"),  # log_normal, logit_normal
        **leave_open(bool, "truncate"),  # log_normal
        **leave_open(float, "rho"),  # karras
        **leave_open(float, "scale"),  # mode
        **leave_open(int, "history"),  # loss_second_moment
        **leave_open(float, "uniform_prob"),
    },
    "cond": {
        # Probability of training without the condition (p_uncond)
        "drop": 0.0,
        # Embedding of no condition: learned, zero
        "null": "learned",
        # Tokens to attend to: label, text, clip, clip_xl, given
        "context": "",
        # If captions: the tokens are the words of the captions of the data
        "words": "",
        # Sizes of embeddings made beforehand
        "given": {"tokens": 77, "pooled": 1280},
        # Tell the network how far a step goes, as a second time (MeanFlow, shortcut models)
        "span": False,
        # Channels joined to z: superres, inpaint, fill, edit, map
        "concat": "",
        # Number of classes of the semantic map
        "map_classes": 0,
        # Weights of a frozen text encoder, as a folder of transformers
        "weights": "",
        # Train the text encoders of a published model with the network
        "train_text": False,
        # Token ids of the empty text, the last of which fills it up; none: zeros
        "empty": (),
    },
    "optim": {
        # An optimiser of optax: a name in `diffjax.train.optimizer.OPTIMIZERS`
        "name": "adam",
        # Learning rate after the warm-up
        "lr": 2e-4,
        # Steps of linear increase of the learning rate
        "warmup": 5000,
        # How the learning rate falls afterwards: constant, cosine, linear, inverse_sqrt
        "decay": "constant",
        # The largest norm of all gradients; 0: no bound
        "clip": 1.0,
        # Bring kernels back to magnitude 1 after every step, for the network edm2
        "unit_kernels": False,
        **leave_open(float, "lr_start"),  # of the warm-up: a fraction of lr
        **leave_open(float, "lr_end"),  # cosine, linear: a fraction of lr
        **leave_open(int, "decay_steps"),  # where cosine and linear end, inverse_sqrt begins
        **leave_open(float, "b1", "b2", "eps"),  # adam, adamw and most others
        **leave_open(float, "weight_decay"),  # adamw, lion, lamb, muon and others
        **leave_open(float, "momentum"),  # sgd, rmsprop, lars and others
        **leave_open(bool, "nesterov"),  # adam, adamw, sgd and others
    },
    "ema": {
        # Decay of the averaged parameters in each step
        "decay": 0.9999,
        # Begin with a smaller decay, ``(1 + step) / (10 + step)``
        "warmup": False,
        # Steps between two moves of the average, each as far as all of them would make
        "every": 1,
        # Half-life of the average in images, in place of `decay`; 0: use `decay`
        "half_life": 0,
        # The half-life is at most this share of the images seen
        "ramp": 0.05,
        # exponential, or power: averages that are a fixed share of the training (EDM2)
        "kind": "exponential",
        # power: relative lengths of the averages that are kept; models have the first
        "lengths": (0.05, 0.1),
        # power: steps between two snapshots of them, of which others are made; 0: none
        "snapshot_every": 5000,
    },
    "train": {
        # Optimiser steps of the whole run
        "steps": 800_000,
        # Wall-clock minutes after which the run saves and stops; 0: no limit
        "minutes": 0.0,
        # Parts that a batch is cut into, whose gradients are added
        "accumulate": 1,
        # Steps between two lines of the log
        "log_every": 100,
        # Steps between two checkpoints
        "checkpoint_every": 5000,
        # Steps between two pictures; 0: none
        "sample_every": 10_000,
        # Steps between two evaluations, a multiple of `log_every`; 0: none
        "evaluate_every": 0,
        # Number of checkpoints that are kept
        "keep": 2,
        # What is done if a loss is not finite: stop, skip the step, or rollback
        "nonfinite": "stop",
        # Services that get the log besides metrics.jsonl and TensorBoard: wandb, trackio
        "trackers": (),
        # Resume although config, shapes or frozen weights differ
        "override": False,
    },
    "sample": {
        # A name in `diffjax.samplers.SAMPLERS`
        "sampler": "ddpm",
        **leave_open(str, "diffusion"),  # euler_maruyama: forward, sigma, sine
        **leave_open(float, "strength"),
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
        # A name in `diffjax.grids.GRIDS`
        "grid": "leading",
        # Number of steps of the grid
        "steps": 1000,
        **leave_open(float, "rho", "sigma_min", "sigma_max"),  # karras
        **leave_open(float, "a", "b"),  # beta
        **leave_open(float, "fraction"),  # quadratic
        **leave_open(int, "original_steps"),  # lcm
        **leave_open(int, "offset"),  # leading
        **leave_open(float, "t_end"),  # uniform
        **leave_open(str, "final"),  # where grids end: clean, first, last
        # Bound the predicted x to [-1, 1]; False for latents
        "clip": True,
        # Guidance scale s = 1 + w (Ho & Salimans 2022); 1: none
        "guidance": 1.0,
        # File of a noisy classifier that guides in place of the null condition
        "classifier": "",
        # Run of a worse version of the model that does so (autoguidance, Karras et al. 2024)
        "guide": "",
        # Relative length of its average, with ema.kind=power; 0: that of its checkpoint
        "guide_ema_length": 0.0,
        # Guide only where sigma / alpha is at least this
        "guidance_low": 0.0,
        # And at most this
        "guidance_high": 1e9,
        # Share of guidance rescale (Lin et al. 2023)
        "guidance_rescale": 0.0,
        # How both halves of guidance are combined: diffjax.guidance.RULES
        "guidance_rule": "cfg",
        **leave_open(float, "apg_eta", "apg_norm"),  # apg
        **leave_open(float, "fdg_low"),  # fdg: share of low frequencies
        **leave_open(int, "guidance_channels"),  # cfg: how many channels it guides
        # First evaluations in which nothing moves (CFG-Zero*)
        "zero_steps": 0,
        # Blocks of a transformer that the weak half of skip-layer guidance lacks
        "skip_blocks": (),
        # Factor on what that adds; 0: none
        "skip_scale": 0.0,
        # Run both halves of guidance in turn: slower, with half of the memory
        "guidance_sequential": False,
        # Images of a command without --num
        "num": 64,
        # Images drawn at a time
        "batch_size": 64,
    },
    "eval": {
        # Images of an evaluation
        "num": 50_000,
        # Frozen classifier for distances; empty: none for this data
        "features": "",
        # Test images of the likelihood
        "bits_images": 1000,
        # Images of an evaluation in training
        "loop_num": 1000,
        # The measure by which the best state is kept in best/; empty: keep none
        "best": "distance",
        # Whether the smallest (min) or the largest (max) value is best
        "best_mode": "min",
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
}
