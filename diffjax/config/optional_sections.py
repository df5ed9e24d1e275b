"""Sections that only some configs have, with their defaults, as tables like those of `defaults`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffjax.types import Config  # not before: it takes a second

# What configs have beside DEFAULTS if they fine-tune a published model or train an adapter.
OPTIONAL: Config = {
    "model": {
        # The model to begin with: diffusers folder, single .safetensors file, or random
        "path": "",
        # Folder of a tokenizer, which a single file needs
        "tokenizer": "",
    },
    "control": {
        # The frozen base: a workdir or an exported file; not with a section `model`
        "base": "",
        # How hints are made (diffjax.data.HINTS), with the options of canny
        "hint": {"name": "canny", "low": 0.05, "high": 0.1, "sigma": 1.0, "norm": "l2"},
        "net": {
            # controlnet or t2i_adapter
            "name": "controlnet",
            # Channels of the hint
            "hint_channels": 3,
            # Widths of the layers that encode the hint
            "hint_widths": (16, 32, 96, 256),
            # Pixels of the hint per pixel of z
            "hint_factor": 8,
            # How the hint is encoded: as in the released models, or as in the paper
            "hint_encoder": "released",
            # How the connections to the base begin: zero or gaussian
            "connections": "zero",
            # A few convolutions in place of a copy of the encoder (ControlNet-lite)
            "lite": False,
            # t2i_adapter: full, full_xl or light
            "kind": "full",
            # t2i_adapter: residual blocks of a level
            "blocks": 2,
        },
        # Add residuals to the middle alone, and not to the skips
        "only_middle": False,
        # Train the base's decoder too
        "train_decoder": False,
        # Of control and prompt: balanced, prompt, control, guess or resolution
        "balance": "balanced",
    },
    "prior": {
        # Folder of other pictures of the kind, such as some that the model made; no captions
        "dir": "",
        # Their caption, such as "a dog" for a dog of one's own
        "prompt": "",
        # Factor on their loss; 0: no such pictures
        "weight": 1.0,
    },
    "lora": {
        # Rank r of the matrices B (out, r) and A (r, in)
        "rank": 16,
        # The layers get alpha / rank B A
        "alpha": 16.0,
        # Layers that get adapters, by the ends of their dotted names
        "targets": ("to_q", "to_k", "to_v", "to_out.0"),
        # The same of text encoders, such as q_proj, k_proj, v_proj, out_proj; none: frozen
        "text_targets": (),
    },
    "consistency": {
        # Steps of the grid between two of which the student is to agree
        "steps": 50,
        # Smallest and largest guidance scale w of the teacher (s = 1 + w)
        "low": 5.0,
        "high": 15.0,
        # Constant c of the pseudo-Huber distance
        "huber": 0.001,
        # Factor on the timestep in the boundary condition, as of the sampler lcm
        "timestep_scaling": 10.0,
    },
    "distil": {
        # The trained model that is asked and begun with: a workdir or an exported file
        "base": "",
        # What the base predicts; empty: the same as the student
        "parameterization": "",
    },
    "ip_adapter": {
        # Folder of CLIP's image encoder, or its name on the Hub; or random
        "encoder": "",
        # How the picture becomes tokens: base, plus (resampler) or full
        "kind": "base",
        # Tokens of a picture; base and plus
        "tokens": 4,
        # plus: width of the queries, attention heads and layers
        "features": 768,
        "heads": 12,
        "layers": 4,
        # The image encoder: sizes, as those of OpenCLIP's ViT-H that published adapters read
        "vision": {
            "size": 224,
            "patch": 14,
            "features": 1280,
            "width": 5120,
            "layers": 32,
            "heads": 16,
            "projection": 1024,
            "activation": "gelu",
        },
    },
    "align": {
        # Factor on the term of REPA; 0: no such term
        "weight": 0.5,
        # Blocks of the transformer before the tokens that are compared
        "block": 8,
        # Hidden channels of the projection
        "width": 2048,
        # Folder of DINOv2, or its name on the Hub; or random
        "encoder": "",
        # The encoder: sizes, as those of DINOv2's ViT-B
        "vision": {
            "size": 518,
            "patch": 14,
            "features": 768,
            "layers": 12,
            "heads": 12,
            "ratio": 4,
            "registers": 0,
            "swiglu": False,
        },
    },
    "concept": {
        # The new word, such as <cat-toy>
        "word": "",
        # Text whose embeddings the word begins with; empty: the mean of all
        "initial": "",
        # Embeddings of the word
        "vectors": 1,
    },
}
