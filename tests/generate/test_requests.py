"""Requests: every argument is understood in all its forms, or refused before anything is computed.

The model is that of tests/parity/generate_cases.py, small and with random weights.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import diffjax
from diffjax import (
    Control,
    Embedding,
    Guidance,
    Image,
    Lora,
    PerturbedAttention,
    Prompt,
    Refiner,
    Sampling,
    Size,
)
from diffjax.generate import diffusers_names, stages
from tests.parity import generate_cases as g

SIZE, NAN, INF = g.SIZE, float("nan"), float("inf")
HUGE = 10**5000  # more digits than Python prints


@pytest.fixture(scope="module")
def pipe():
    return g.pipeline("sd1")


@pytest.fixture
def compiled():
    """What is compiled during a test."""
    seen = []

    def listen(event, seconds, fun_name="", **rest):
        if event.endswith("backend_compile_duration"):
            seen.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def _make(pipe, prompt=g.PROMPTS, **options):
    options = {"key": (3, 4), "sampler": 2, "size": SIZE, "output": "np", **options}
    return pipe(prompt, **options)


def _net():
    return g.controls("sd1")[0]


def _control(*values, **options):
    return dict(control=[Control(_net(), g.picture(), *values, **options)])


def _context(*shape, fill=0.0):
    return Embedding(np.full(shape, fill, np.float32))


def _latents(fill=0.0, dtype=np.float32):
    return np.full((2, SIZE // 2, SIZE // 2, 4), fill, dtype)


def _listed(*values):
    return dict(sampler=Sampling("euler", timesteps=values))


def _image(*values, **options):
    return dict(image=Image(g.picture(), *values, **options))


# What is asked for, and parts of the message; made by functions, so that none is made on import.
REFUSED = {
    # prompts
    "prompt none": (lambda: dict(prompt=None), "prompt must be a text, a list of texts", "None"),
    "prompt number": (lambda: dict(prompt=5), "prompt must be a text", "got 5 (int)"),
    "prompt dict": (lambda: dict(prompt={"prompt": "cat"}), "prompt must be", "(dict)"),
    "prompt bytes": (lambda: dict(prompt=b"cat"), "prompt must be", "b'cat' (bytes)"),
    "prompt set": (lambda: dict(prompt={"cat"}), "prompt must be a text, a list", "(set)"),
    "prompt generator": (lambda: dict(prompt=(c for c in "ab")), "prompt must be", "(generator)"),
    "prompt array": (
        lambda: dict(prompt=np.zeros((1, 12, 6), "f4")),
        "float32 (1, 12, 6): wrap it, Embedding(array)",
    ),
    "prompts empty": (lambda: dict(prompt=()), "there is no prompt"),
    "prompts with a number": (lambda: dict(prompt=["cat", 5]), "prompt[1] must be a text", "5"),
    "prompts with None": (lambda: dict(prompt=["cat", None]), "prompt[1]", "None"),
    "prompts with bytes": (lambda: dict(prompt=["cat", b"d"]), "prompt[1]", "decode them first"),
    "prompts nested": (lambda: dict(prompt=[["cat"], "dog"]), "prompt[0] must be a text"),
    "prompt of half a letter": (lambda: dict(prompt="a\ud800"), "no Unicode text, at character 1"),
    "prompts with an embedding": (
        lambda: dict(prompt=["cat", _context(1, 12, 6)]),
        "prompt[1] is an Embedding among texts",
    ),
    "half a prompt for two": (lambda: dict(prompt=Prompt("cat", None)), "prompt.second must be"),
    "prompt for two": (lambda: dict(prompt=Prompt("a", "b"), key=1), "this model has one text enc"),
    "request as prompt": (
        lambda: dict(prompt=diffjax.Request("cat")),
        "run it with pipe.steps(request)",
    ),
    "prompt Guidance": (lambda: dict(prompt=Guidance(7.5)), "prompt must be a text", "Guidance("),
    "prompts of numbers": (lambda: dict(prompt=np.array([1, 2])), "prompt must be", "int64 (2,)"),
    "prompts of two axes": (lambda: dict(prompt=np.array([["a"]])), "prompt must be", "(1, 1)"),
    # embeddings
    "embedding none": (lambda: dict(prompt=Embedding(None)), "prompt.context must be an array"),
    "embedding of two axes": (lambda: dict(prompt=_context(12, 6)), "prompt.context", "(B, M, D)"),
    "embedding NaN": (
        lambda: dict(prompt=_context(2, 12, 6, fill=NAN)),
        "prompt.context must be finite: 144 of 144",
    ),
    "embedding of integers": (
        lambda: dict(prompt=Embedding(np.zeros((2, 12, 6), int))),
        "prompt.context must be (B, M, D) floats, got an array of int64 (2, 12, 6)",
    ),
    "embedding as list": (lambda: dict(prompt=Embedding([[[0.0]]])), "prompt.context must be"),
    "embedding of another model": (
        lambda: dict(prompt=_context(2, 12, 7)),
        "prompt.context has a width of 7, but this model takes 6",
    ),
    "embedding of odd length": (
        lambda: dict(prompt=_context(2, 10, 6)),
        "prompt has 10 and guidance.negative has 12 tokens",
        "chunks of 12",
    ),
    "embedding empty": (lambda: dict(prompt=_context(0, 12, 6)), "prompt.context must be"),
    # keys
    "key none": (lambda: dict(key=None), "key must be a seed", "random.randrange"),
    "key fraction": (lambda: dict(key=1.5), "key must be a seed", "1.5 (float)"),
    "key whole float": (lambda: dict(key=1.0), "key must be a seed", "1.0 (float)"),
    "key bool": (lambda: dict(key=True), "key must be a seed", "True"),
    "key text": (lambda: dict(key="7"), "key must be a seed", "'7'"),
    "key generator": (lambda: dict(key=np.random.default_rng(0)), "key must be a seed"),
    "key negative": (lambda: dict(key=-1), "seeds must lie in [0, 2^32), got -1"),
    "key too large": (lambda: dict(key=2**32), "[0, 2^32), got 4294967296"),
    "key huge": (lambda: dict(key=HUGE), "got a very large number"),
    "keys with a fraction": (lambda: dict(key=[1, 2.5]), "key[1] must be a seed", "2.5"),
    "keys fractions": (lambda: dict(key=np.array([1.0, 2.0])), "key must be a seed", "float64 (2"),
    "keys with None": (lambda: dict(key=[1, None]), "key[1]", "None"),
    "keys too many": (lambda: dict(key=[1, 2, 3]), "2 images, but 3 keys or seeds"),
    "keys too few": (lambda: dict(key=[1]), "2 images, but 1 keys or seeds"),
    "keys of two axes": (
        lambda: dict(key=jax.random.split(jax.random.key(0), 4).reshape(2, 2)),
        "key must be a seed",
        "key<fry> (2, 2)",
    ),
    "keys empty": (lambda: dict(key=[]), "2 images, but 0 keys or seeds"),
    "key set": (lambda: dict(key={1, 2}), "key must be a seed", "(set)"),
    "raw keys too many": (
        lambda: dict(key=np.zeros((3, 2), np.uint32)),
        "2 images, but 3 keys or seeds",
    ),
    "raw key of NumPy": (
        lambda: dict(key=np.zeros(2, np.uint32)),
        "may be a raw key or a list of seeds",
        "wrap_key_data(key), or key.tolist()",
    ),
    # samplers
    "sampler unknown": (lambda: dict(sampler="eular"), "unknown sampler 'eular'", "mean 'euler'?"),
    "sampler empty": (lambda: dict(sampler=""), "unknown sampler ''"),
    "sampler class unknown": (
        lambda: dict(sampler="EulerDiskrete"),
        "unknown scheduler class 'EulerDiskrete'",
        "Did you mean 'EulerDiscrete'?",
    ),
    "sampler not supported": (lambda: dict(sampler="DPMSolverSDE"), "is not supported: it draws"),
    "sampler object": (lambda: dict(sampler=object()), "sampler must be a name"),
    "sampler tuple": (lambda: dict(sampler=("euler", 5)), "sampler must be", "Sampling(name, st"),
    "sampler bool": (lambda: dict(sampler=True), "sampler must be a name", "True"),
    "sampler list": (lambda: dict(sampler=Sampling(["euler"])), "sampler.name must be a text"),
    "steps zero": (lambda: dict(sampler=0), "sampler.steps must lie in [1, 10000], got 0"),
    "steps negative": (lambda: dict(sampler=-3), "sampler.steps must lie in", "-3"),
    "steps fraction": (lambda: dict(sampler=2.5), "sampler must be", "whole number of steps"),
    "steps fraction in full": (
        lambda: dict(sampler=Sampling(steps=2.5)),
        "sampler.steps must be a whole number, got 2.5 (float)",
    ),
    "steps bool": (lambda: dict(sampler=Sampling(steps=True)), "sampler.steps must be a whole"),
    "steps text": (lambda: dict(sampler=Sampling(steps="5")), "sampler.steps must be", "'5'"),
    "steps too many": (lambda: dict(sampler=10**9), "sampler.steps must lie in", "1000000000"),
    "steps of the schedule": (lambda: dict(sampler=1001), "1001"),
    "grid unknown": (
        lambda: dict(sampler=Sampling(grid="karas")),
        "unknown grid 'karas'",
        "mean 'karras'?",
    ),
    "grid list": (lambda: dict(sampler=Sampling(grid=["karras"])), "sampler.grid must be a text"),
    "options list": (
        lambda: dict(sampler=Sampling(options=["rho"])),
        "sampler.options must be a dict",
    ),
    "options unknown": (lambda: dict(sampler=Sampling(options={"rho": 7})), "has no rho"),
    "eta NaN": (lambda: dict(sampler=Sampling("ddim", 2, eta=NAN)), "sampler.eta must be finite"),
    "eta negative": (lambda: dict(sampler=Sampling("ddim", 2, eta=-1)), "sampler.eta", "got -1"),
    "eta text": (lambda: dict(sampler=Sampling("ddim", 2, eta="0")), "sampler.eta must be a num"),
    "eta of another": (lambda: dict(sampler=Sampling("euler", 2, eta=1)), "takes no eta"),
    "timesteps text": (
        lambda: dict(sampler=Sampling("euler", timesteps="999")),
        "sampler.timesteps must be a list of falling numbers, got '999'",
    ),
    "timesteps none": (lambda: _listed(), "sampler.timesteps must have 1 to 10000 numbers, got 0"),
    "timesteps rising": (
        lambda: _listed(10, 20),
        "sampler.timesteps[1] must be below 10 before it, got 20",
    ),
    "timesteps twice": (lambda: _listed(20, 20), "sampler.timesteps[1] must be below 20"),
    "timesteps NaN": (lambda: _listed(20, NAN), "sampler.timesteps[1] must be finite"),
    "timesteps texts": (lambda: _listed("a"), "sampler.timesteps[0] must be a number, got 'a'"),
    "timesteps negative": (lambda: _listed(9, -1), "sampler.timesteps[1]", "at least 0, got -1"),
    "timesteps beyond the table": (lambda: _listed(1000, 0), "must lie in 0 .. 999, got 1000 .. 0"),
    "timesteps of a sampler without": (
        lambda: dict(sampler=Sampling("ddim", timesteps=[9, 1])),
        "this scheduler takes steps, but timesteps is given",
    ),
    "timesteps with a grid": (
        lambda: dict(sampler=Sampling("euler", grid="karras", timesteps=[9, 1])),
        "timesteps cannot be given with use_karras_sigmas",
    ),
    "sigmas of a sampler without": (
        lambda: dict(sampler=Sampling("heun", sigmas=[3, 1, 0])),
        "this scheduler takes steps or timesteps, but sigmas is given",
    ),
    "sigmas without the last": (
        lambda: dict(sampler=Sampling("euler", sigmas=[3.0])),
        "sigmas must hold the last level too",
    ),
    "part turned": (
        lambda: dict(sampler=Sampling(start=0.8, end=0.4)),
        "sampler.start must be below sampler.end, got 0.8 and 0.4",
    ),
    "part beyond": (lambda: dict(sampler=Sampling(end=1.5)), "sampler.end must lie in [0, 1]"),
    "part NaN": (lambda: dict(sampler=Sampling(start=NAN)), "sampler.start must lie in [0, 1]"),
    "part as pictures": (
        lambda: dict(sampler=Sampling(end=0.5)),
        "output is 'np', but sampler.end=0.5 leaves latents with noise, which output='latent'",
    ),
    "part without latents": (
        lambda: dict(sampler=Sampling(start=0.5)),
        "latents is missing: sampler.start=0.5 continues what a run with sampler.end=0.5",
    ),
    "part with a strength": (
        lambda: dict(
            sampler=Sampling(start=0.5), latents=_latents(), image=Image(g.picture(), 0.5)
        ),
        "image.strength has no meaning with sampler.start",
    ),
    "noise of too few steps": (
        lambda: dict(step_noise=np.zeros((1, *_latents().shape), "f4")),
        "step_noise must be (2, 2, 8, 8, 4), one entry for each of 2 evaluations",
        "got (1, 2, 8, 8, 4)",
    ),
    "noise NaN": (
        lambda: dict(step_noise=np.stack([_latents(NAN)] * 2)),
        "step_noise must be finite",
    ),
    "noise of four axes": (lambda: dict(step_noise=_latents()), "step_noise must be (evaluations"),
    # perturbed attention and FreeU
    "perturbed text": (
        lambda: dict(guidance=Guidance(perturbed="mid")),
        "guidance.perturbed must be a number or a PerturbedAttention(scale), got 'mid'",
    ),
    "perturbed negative": (
        lambda: dict(guidance=Guidance(perturbed=PerturbedAttention(-1))),
        "guidance.perturbed.scale must be finite and at least 0, got -1",
    ),
    "perturbed nowhere": (
        lambda: dict(guidance=Guidance(perturbed=PerturbedAttention(3, ()))),
        "guidance.perturbed.layers must be names such as ('mid_block'",
    ),
    "perturbed unknown": (
        lambda: dict(guidance=Guidance(perturbed=PerturbedAttention(3, "midblock"))),
        "unknown attention 'midblock'; choose one of down_blocks.",
        "Did you mean 'mid_block'?",
    ),
    "perturbed adaptive": (
        lambda: dict(guidance=Guidance(perturbed=PerturbedAttention(3, adaptive=NAN))),
        "guidance.perturbed.adaptive must be finite",
    ),
    "freeu tuple": (lambda: dict(freeu=(1.5, 1.6, 0.9, 0.2)), "freeu must be FreeU(b1=1.5, b2="),
    "freeu factor": (
        lambda: dict(freeu=diffjax.FreeU(1.5, 16, 0.9, 0.2)),
        "freeu.b2 must lie in [0, 10.0], got 16",
    ),
    # guidance
    "guidance NaN": (lambda: dict(guidance=NAN), "guidance must be finite", "nan"),
    "guidance infinite": (lambda: dict(guidance=INF), "guidance must be finite", "inf"),
    "guidance beyond float32": (lambda: dict(guidance=1e39), "guidance must be finite", "1e+39"),
    "guidance huge": (lambda: dict(guidance=HUGE), "guidance must be finite", "very large"),
    "guidance negative": (lambda: dict(guidance=-2), "guidance must be finite and at least 0"),
    "guidance text": (lambda: dict(guidance="7.5"), "guidance must be one number", "'7.5'"),
    "guidance bool": (lambda: dict(guidance=True), "guidance must be one number", "True"),
    "guidance list": (lambda: dict(guidance=[7.5, 5]), "guidance must be one number", "(list)"),
    "guidance tuple": (lambda: dict(guidance=(7.5, "red")), "guidance must be one number"),
    "guidance complex": (lambda: dict(guidance=1j), "guidance must be one number", "1j"),
    "guidance key": (
        lambda: dict(guidance=jax.random.key(0)),
        "guidance must be one",
        "key<fry> (",
    ),
    "guidance schedule": (
        lambda: dict(guidance=Guidance(np.linspace(7, 1, 50))),
        "guidance.scale must be one number, got an array of float64 (50,)",
    ),
    "rescale": (lambda: dict(guidance=Guidance(5, rescale=1.5)), "guidance.rescale must lie in [0"),
    "rescale NaN": (lambda: dict(guidance=Guidance(5, rescale=NAN)), "guidance.rescale"),
    "interval turned": (
        lambda: dict(guidance=Guidance(5, low=3, high=1)),
        "guidance.low must be at most guidance.high, got 3 and 1",
    ),
    "interval NaN": (lambda: dict(guidance=Guidance(5, low=NAN)), "guidance.low", "nan"),
    "interval negative": (lambda: dict(guidance=Guidance(5, high=-1)), "guidance.high", "-1"),
    "negatives empty": (lambda: dict(guidance=Guidance(5, [])), "guidance.negative is an empty"),
    "negatives too many": (
        lambda: dict(guidance=Guidance(5, ["a", "b", "c"])),
        "2 prompts have 3 negative prompts",
    ),
    "negative number": (lambda: dict(guidance=Guidance(5, 7)), "guidance.negative must be a text"),
    "negatives with None": (lambda: dict(guidance=Guidance(5, ["a", None])), "negative[1]"),
    "negative NaN": (
        lambda: dict(guidance=Guidance(5, _context(1, 12, 6, fill=INF))),
        "guidance.negative.context must be finite",
    ),
    "negative of another model": (
        lambda: dict(guidance=Guidance(5, _context(1, 12, 9))),
        "guidance.negative.context has a width of 9",
    ),
    # sizes
    "size zero": (lambda: dict(size=0), "size must lie in [1, 65536], got 0"),
    "size negative": (lambda: dict(size=-16), "size must lie in", "-16"),
    "size float": (lambda: dict(size=16.0), "size must be a number of pixels", "16.0 (float)"),
    "size text": (lambda: dict(size="16x16"), "size must be", "'16x16'"),
    "size bool": (lambda: dict(size=True), "size must be a number of pixels", "True"),
    "size of three": (lambda: dict(size=(16, 16, 3)), "size must be two whole numbers"),
    "size list of floats": (lambda: dict(size=[16.0, 16]), "size must be a whole number", "16.0"),
    "size with zero": (lambda: dict(size=(16, 0)), "size must lie in [1, 65536], got 0"),
    "size of all fields": (lambda: dict(size=tuple(Size(16, 16))), "size must be two whole"),
    "size array of floats": (lambda: dict(size=np.array([16.0, 16])), "size must be a whole num"),
    "size dict": (lambda: dict(size={"height": 16}), "size must be", "(dict)"),
    "size uneven": (
        lambda: dict(size=(SIZE + 1, SIZE)),
        "height and width must be multiples of 2, got (17, 16); the nearest are (16, 16)",
    ),
    "size tiny": (lambda: dict(size=1), "got (1, 1); the nearest are (2, 2)"),
    "size large": (lambda: dict(size=100_000), "size must lie in [1, 65536], got 100000"),
    "size too many pixels": (lambda: dict(size=(65536, 8192)), "65536 x 8192 is too large"),
    "size huge": (lambda: dict(size=HUGE), "size must lie in", "a very large number"),
    "height fraction": (lambda: dict(size=Size(16.5)), "size.height must be a whole number"),
    "width negative": (lambda: dict(size=Size(16, -2)), "size.width must lie in [0, 65536]"),
    "crop of one": (lambda: dict(size=Size(16, 16, crop=(0,))), "size.crop must be two whole"),
    "crop negative": (lambda: dict(size=Size(16, 16, crop=(0, -1))), "size.crop must lie in [0"),
    "crop none": (lambda: dict(size=Size(16, 16, crop=None)), "size.crop must be two", "None"),
    "original zero": (lambda: dict(size=Size(16, 16, original=(0, 8))), "size.original must lie"),
    "aesthetic NaN": (lambda: dict(size=Size(16, 16, aesthetic=NAN)), "size.aesthetic"),
    # numbers
    "num zero": (lambda: dict(num=0), "num must be at least 1, got 0"),
    "num fraction": (lambda: dict(num=1.5), "num must be a whole number, got 1.5 (float)"),
    "num bool": (lambda: dict(num=True), "num must be a whole number, got True"),
    "num too large": (lambda: dict(num=10**9, key=1), "2000000000 images", "too many for one call"),
    "clip_skip negative": (lambda: dict(clip_skip=-1), "clip_skip must lie in [0", "-1"),
    "clip_skip fraction": (lambda: dict(clip_skip=0.5), "clip_skip must be a whole number"),
    "clip_skip all": (lambda: dict(clip_skip=3), "clip_skip must leave a layer of 3, got 3"),
    "weighted number": (lambda: dict(weighted=1), "weighted must be True or False, got 1 (int)"),
    "weighted text": (lambda: dict(weighted="no"), "weighted must be True or False, got 'no'"),
    "output unknown": (lambda: dict(output="pt"), "unknown output 'pt'"),
    "output list": (lambda: dict(output=["pil"]), "output must be a text"),
    "callback": (lambda: dict(callback=5), "callback must be a function of a Progress, got 5"),
    # latents
    "latents NaN": (lambda: dict(latents=_latents(NAN)), "latents must be finite: 512 of 512"),
    "latents beyond float32": (lambda: dict(latents=_latents(1e39, float)), "latents must be fin"),
    "latents integers": (lambda: dict(latents=_latents(0, int)), "latents must be (B, h, w"),
    "latents complex": (lambda: dict(latents=_latents(0, complex)), "latents must be (B, h, w"),
    "latents list": (lambda: dict(latents=[0.0]), "latents must be an array", "(list)"),
    "latents of one": (lambda: dict(latents=_latents()[0]), "latents must be (B, h, w, channels)"),
    "latents of others": (lambda: dict(latents=_latents()[:1]), "latents must be (2, 8, 8, 4), g"),
    "latents channels first": (
        lambda: dict(latents=np.moveaxis(_latents(), -1, 1), size=SIZE),
        "latents must be (B, h, w, 4), got (2, 4, 8, 8): channels come last",
    ),
    # pictures
    "image path": (
        lambda: dict(image="dog.png"),
        "image must be a picture",
        "PIL.Image.open(path)",
    ),
    "image Path": (lambda: dict(image=Path("dog.png")), "image must be a picture", "open it"),
    "image bytes": (lambda: dict(image=b"\x89PNG"), "image must be a picture", "io.BytesIO"),
    "image number": (lambda: dict(image=5), "image must be a picture or an array, got 5"),
    "image dict": (lambda: dict(image={"pixels": 0}), "image must be a picture or an array"),
    "image none": (lambda: dict(image=Image(None)), "image.pixels must be a picture", "None"),
    "image twice": (lambda: dict(image=Image(Image(g.picture()))), "image.pixels must be a pic"),
    "images of paths": (lambda: dict(image=["a.png", "b.png"]), "image: "),
    "image and strength": (lambda: dict(image=(g.picture(), 0.5)), "image: "),
    "images of two sizes": (lambda: dict(image=[g.picture(), g.picture()[:8]]), "image: "),
    "images none": (lambda: dict(image=[]), "image: "),
    "strength bool": (lambda: _image(True), "image.strength must be a number, got True"),
    "mask of texts": (lambda: _image(mask=["a"]), "image.mask: "),
    "mask path": (lambda: _image(mask="mask.png"), "image.mask must be a picture", "open it"),
    "strength NaN": (lambda: _image(NAN), "image.strength must lie in [0, 1], got nan"),
    "strength above": (lambda: _image(1.5), "image.strength must lie in [0, 1], got 1.5"),
    "strength negative": (lambda: _image(-0.1), "image.strength must lie in [0, 1], got -0.1"),
    "strength text": (lambda: _image("0.5"), "image.strength must be a number, got '0.5'"),
    "strength of no step": (lambda: _image(0.1), "strength"),
    "image latents NaN": (
        lambda: dict(image=Image(_latents(NAN)[:1]), size=None),
        "latents must be finite",
    ),
    "padding without a mask": (
        lambda: _image(mask_padding=4),
        "image.mask_padding needs a mask: Image(pixels, mask=mask)",
    ),
    "padding negative": (
        lambda: _image(mask=g.mask(), mask_padding=-1),
        "image.mask_padding must lie in [0, 65536], got -1",
    ),
    "padding fraction": (
        lambda: _image(mask=g.mask(), mask_padding=0.5),
        "image.mask_padding must be a whole number, got 0.5",
    ),
    "padding of latents": (
        lambda: dict(
            image=Image(diffjax.generate.Latents(_latents()), mask=g.mask(), mask_padding=1)
        ),
        "image.mask_padding needs pixels to crop, but the image is latents",
    ),
    "padding of a black mask": (
        lambda: _image(mask=0 * g.mask(), mask_padding=1),
        "image.mask: mask is black everywhere: there is nothing to crop",
    ),
    "image NaN": (lambda: dict(image=np.full((SIZE, SIZE, 3), NAN)), "image: "),
    "images too many": (
        lambda: dict(image=Image(np.stack([g.picture()] * 3))),
        "image: give one image, or one for each of 2",
    ),
    # ControlNets
    "control network": (lambda: dict(control=_net()), "control must be a list", "Control(net, im"),
    "control path": (lambda: dict(control="folder"), "control must be a list such as [Control("),
    "control tuple": (lambda: dict(control=[(_net(), g.picture())]), "control[0] must be Control"),
    "control of a path": (
        lambda: dict(control=Control("folder", g.picture())),
        "control[0].net must be a ControlNet or T2I-Adapter from diffjax.pretrained.load_model",
    ),
    "control of a pipeline": (
        lambda: dict(control=Control(g.pipeline("sd1"), g.picture())),
        "control[0].net must be",
    ),
    "control of a UNet": (
        lambda: dict(control=Control(g.pipeline("sd1").parts.unet, g.picture())),
        "control[0].net must be",
    ),
    "control of another base": (
        lambda: dict(control=Control(g.controls("xl")[0], g.picture())),
        "control[0].net is for another base",
    ),
    "hint path": (lambda: dict(control=Control(_net(), "h.png")), "control[0].image", "open it"),
    "hint none": (lambda: dict(control=Control(_net(), None)), "control[0].image must be a pic"),
    "hint of other channels": (
        lambda: dict(control=Control(_net(), np.zeros((SIZE, SIZE, 5)))),
        "control[0].image: ",
    ),
    "hints too many": (
        lambda: dict(control=Control(_net(), np.zeros((3, SIZE, SIZE, 3)))),
        "control[0].image: give one control image",
    ),
    "hint NaN": (
        lambda: dict(control=Control(_net(), np.full((SIZE, SIZE, 3), NAN))),
        "control[0].image: ",
    ),
    "control dict": (lambda: dict(control={}), "control must be a list"),
    "control scale NaN": (lambda: _control(NAN), "control[0].scale must be finite, got nan"),
    "control scale list": (
        lambda: _control([1.0]),
        "control[0].scale must be one number or 'diffusers'",
    ),
    "control window": (lambda: _control(1, 0.7, 0.2), "control[0].start must be below end", "0.7"),
    "control start": (lambda: _control(1, -0.1), "control[0].start must lie in [0, 1], got -0.1"),
    "control end NaN": (lambda: _control(1, 0, NAN), "control[0].end must lie in [0, 1], got nan"),
    "balance": (
        lambda: _control(balance="gess"),
        "unknown balance 'gess'",
        "Did you mean 'guess'?",
    ),
    "balance none": (lambda: _control(balance=None), "control[0].balance must be a text"),
    # adapters and refiners
    "lora path": (lambda: dict(lora="lora.safetensors"), "lora must be a list such as [Lora(pipe"),
    "lora of a path": (lambda: dict(lora=Lora("f")), "lora[0].weights must come from pipe.load_"),
    "lora empty": (lambda: dict(lora=Lora({})), "lora[0].weights must come from"),
    "lora without a half": (
        lambda: dict(lora=Lora({"conv_in": {"lora_A": {"kernel": np.zeros((3, 3, 4, 2))}}})),
        "lora[0].weights do not fit this model: it has no 'lora_B'",
    ),
    "lora of another model": (
        lambda: dict(lora=Lora({"conv_up": {"lora_A": {}, "lora_B": {}}})),
        "lora[0].weights do not fit this model: the network has no weights for conv_up",
    ),
    "lora scale": (lambda: dict(lora=Lora({"a": {}}, NAN)), "lora[0].scale must be finite"),
    "refiner path": (lambda: dict(refiner="XL_REFINER"), "refiner must be a pipeline or Refiner("),
    "refiner number": (lambda: dict(refiner=0.8), "refiner must be a pipeline", "0.8"),
    "refiner twice": (
        lambda: dict(refiner=Refiner(Refiner(g.pipeline("sd1")))),
        "refiner must be a pipeline",
    ),
    "refiner of one step": (
        lambda: dict(refiner=g.pipeline("sd1"), sampler=1),
        "no step of this grid lies before end=0.8",
    ),
    "refiner start": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), 1.0)),
        "refiner.start must lie between 0 and 1, got 1",
    ),
    "refiner prompts too many": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), prompt=["a", "b", "c"])),
        "there are 2 prompts, but the refiner has 3",
    ),
    "refiner prompt": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), prompt=5)),
        "refiner.prompt must be a text, a list of texts",
    ),
    "refiner guidance": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), guidance=Guidance(NAN))),
        "refiner.guidance.scale must be finite",
    ),
    "refiner negatives": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), guidance=Guidance(3, ["a"] * 3))),
        "refiner: 2 prompts have 3 negative prompts",
    ),
    "refiner outside of the part": (
        lambda: dict(
            refiner=Refiner(g.pipeline("sd1"), 0.8), sampler=Sampling(end=0.7), output="latent"
        ),
        "refiner.start must lie between sampler.start=0 and sampler.end=0.7, got 0.8",
    ),
    "refiner start NaN": (
        lambda: dict(refiner=Refiner(g.pipeline("sd1"), NAN)),
        "refiner.start must be finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name_before_anything_is_compiled(pipe, compiled, name):
    make, *fragments = REFUSED[name]
    options = make()
    compiled.clear()  # networks are made by compiled functions
    with pytest.raises(diffjax.RequestError) as caught:
        _make(pipe, **options)
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message
    assert len(message) < 700 and caught.value.argument
    assert not compiled


# ---- what is understood in several forms -------------------------------------------------------

ACCEPTED = {
    "prompt array": lambda: dict(prompt=np.array(g.PROMPTS)),
    "prompts of NumPy": lambda: dict(prompt=[np.str_(prompt) for prompt in g.PROMPTS]),
    "seeds of NumPy": lambda: dict(key=np.array([3, 4])),
    "seeds in a range": lambda: dict(key=range(3, 5)),
    "seeds as uint8": lambda: dict(key=np.array([3, 4], np.uint8)),
    "seeds of JAX": lambda: dict(key=jnp.array([3, 4])),
    "seeds one by one": lambda: dict(key=[np.int64(3), jnp.asarray(4)]),
    "keys": lambda: dict(key=jax.vmap(jax.random.key)(jnp.array([3, 4]))),
    "keys in a list": lambda: dict(key=[jax.random.key(3), jax.random.key(4)]),
    "raw keys": lambda: dict(key=jnp.stack([jax.random.PRNGKey(k) for k in (3, 4)])),
    "raw keys in a list": lambda: dict(key=[jax.random.PRNGKey(3), jax.random.PRNGKey(4)]),
    "raw keys of NumPy": lambda: dict(key=[np.asarray(jax.random.PRNGKey(k)) for k in (3, 4)]),
    "keys and seeds": lambda: dict(key=[jax.random.key(3), 4]),
    "steps of NumPy": lambda: dict(sampler=np.int32(2)),
    "steps of JAX": lambda: dict(sampler=jnp.asarray(2)),
    "steps in full": lambda: dict(sampler=Sampling(steps=np.int64(2))),
    "guidance integer": lambda: dict(guidance=np.int64(3)),
    "guidance of NumPy": lambda: dict(guidance=np.float32(3)),
    "guidance of JAX": lambda: dict(guidance=Guidance(jnp.asarray(3.0), high=INF)),
    "negative as list": lambda: dict(guidance=Guidance(3.0, [""])),
    "negatives as tuple": lambda: dict(guidance=Guidance(3.0, ("", ""))),
    "size list": lambda: dict(size=[SIZE, SIZE]),
    "size array": lambda: dict(size=np.array([SIZE, SIZE])),
    "size of NumPy": lambda: dict(size=np.int32(SIZE)),
    "size in full": lambda: dict(size=Size(np.int64(SIZE), crop=[0, 0])),
    "num of NumPy": lambda: dict(num=np.int64(1)),
    "no controls": lambda: dict(control=None, lora=None, refiner=None),
    "weighted of NumPy": lambda: dict(weighted=np.False_, clip_skip=np.int8(0)),
}


@pytest.fixture(scope="module")
def made(pipe):
    return _make(pipe, guidance=3.0)


@pytest.mark.parametrize("name", ACCEPTED)
def test_other_forms_give_the_same_bits(pipe, made, name):
    np.testing.assert_array_equal(_make(pipe, **{"guidance": 3.0, **ACCEPTED[name]()}), made)


@pytest.mark.parametrize("raw", [jax.random.PRNGKey, jax.random.key])
def test_one_key_stands_for_its_seed(pipe, raw):
    wanted = _make(pipe, key=7)
    np.testing.assert_array_equal(_make(pipe, key=raw(7)), wanted)


def test_bare_pictures(pipe):
    picture = g.picture()
    wanted = _make(pipe, image=Image(picture))
    for given in (picture, PIL.Image.fromarray(picture), [picture], [picture] * 2, picture[None]):
        np.testing.assert_array_equal(_make(pipe, image=given), wanted)


def test_a_control_and_an_adapter_alone(pipe):
    control = Control(_net(), g.picture(), 0.7)
    wanted = _make(pipe, control=[control])
    np.testing.assert_array_equal(_make(pipe, control=control), wanted)
    assert diffjax.Request("cat", lora=Lora({"a": {}}, 0.5)).list_loras() == (Lora({"a": {}}, 0.5),)


def test_a_refiner_may_be_a_pipeline():
    xl, refiner = g.pipeline("xl"), g.pipeline("refiner")
    wanted = _make(xl, sampler=5, refiner=Refiner(refiner, 0.8))
    np.testing.assert_array_equal(_make(xl, sampler=5, refiner=refiner), wanted)


def _with_vae(pipe, **changes):
    vae = pipe.parts.vae
    return diffjax.Pipeline(pipe.parts._replace(vae=vae._replace(net=vae.net.clone(**changes))))


def test_a_refiner_of_other_latents_or_levels_is_refused(compiled):
    xl, refiner = g.pipeline("xl"), g.pipeline("refiner")
    compiled.clear()
    for changes, message in (
        (
            dict(scaling_factor=0.5),
            "scaling_factor of its latents is 0.3, that of the ref",
        ),
        (dict(shift_factor=0.1), "shift_factor of its latents is 0.0, that of the refiner's 0.1"),
    ):
        with pytest.raises(diffjax.RequestError, match=message):
            _make(xl, refiner=Refiner(_with_vae(refiner, **changes)))
    scheduler = {**refiner.parts.scheduler, "beta_end": 0.012}
    other = diffjax.Pipeline(refiner.parts._replace(scheduler=scheduler))
    with pytest.raises(diffjax.RequestError, match="noise levels that they were trained"):
        _make(xl, refiner=other)
    embedding = xl.embed(["cat", "dog"])
    compiled.clear()
    with pytest.raises(diffjax.RequestError, match=r"refiner: prompt\.context has a width of 12"):
        _make(xl, embedding, sampler=5, refiner=refiner)
    assert not compiled


# ---- embeddings beside texts --------------------------------------------------------------------

LONG = "red cat " * 8  # two chunks


@pytest.mark.parametrize("family", ["sd1", "xl"])
def test_an_embedding_is_filled_up_as_a_text_is(family):
    pipe = g.pipeline(family)
    for skip in (0, 1):
        options = dict(weighted=True, clip_skip=skip, guidance=Guidance(3.0, LONG))
        embedding = pipe.embed(g.PROMPTS, clip_skip=skip)
        wanted = _make(pipe, **options)
        np.testing.assert_array_equal(_make(pipe, embedding, **options), wanted)
    # The other way round.
    long = [LONG, "dog"]
    wanted = _make(pipe, long, weighted=True, guidance=Guidance(3.0, "red"))
    negative = Guidance(3.0, pipe.embed("red"))
    np.testing.assert_array_equal(_make(pipe, long, weighted=True, guidance=negative), wanted)
    both = pipe.embed(long, weighted=True)
    np.testing.assert_array_equal(_make(pipe, both, guidance=negative), wanted)


def test_embeddings_of_one_text_or_of_wrong_ones(pipe):
    one = pipe.embed("cat")
    assert one.context.shape == (1, g.LENGTH, 6)  # not one embedding per letter
    np.testing.assert_array_equal(one.context, pipe.embed(["cat"]).context)
    for prompts, options, message in (
        (5, {}, "prompts must be a text, a list of texts"),
        ([], {}, "there is no prompt"),
        (["cat", 5], {}, r"prompts\[1\] must be a text"),
        (one, {}, "prompts is an Embedding already"),
        ("cat", dict(clip_skip=1.5), "clip_skip must be a whole number"),
        ("cat", dict(chunks=0), "chunks must be at least 1"),
        ("cat", dict(weighted="yes"), "weighted must be True or False"),
    ):
        with pytest.raises(diffjax.RequestError, match=message):
            pipe.embed(prompts, **options)


def test_a_model_of_pooled_embeddings_says_so(compiled):
    xl = g.pipeline("xl")
    embedding = xl.embed(g.PROMPTS)
    compiled.clear()
    for wrong, message in (
        (embedding._replace(pooled=None), r"prompt\.pooled is None, but this model needs pooled"),
        (embedding._replace(pooled=embedding.pooled[:1]), r"pooled has 1 rows, but context 2"),
        (embedding._replace(pooled=np.zeros((2, 9), "f4")), r"pooled has a width of 9, which"),
        (embedding._replace(pooled=np.full((2, 6), NAN)), r"prompt\.pooled must be finite: 12 of"),
    ):
        compiled.clear()
        with pytest.raises(diffjax.RequestError, match=message):
            _make(xl, wrong)
        assert not compiled


def test_a_negative_prompt_without_guidance_is_said(pipe, caplog):
    with caplog.at_level("WARNING"):
        _make(pipe, guidance=Guidance(1.0, "red"))
    assert "guidance.negative changes nothing: no step is guided" in caplog.text


def test_sizes_that_no_network_is_told_are_said(pipe, caplog):
    with caplog.at_level("WARNING"):
        size = diffjax.Size(16, 16, crop=(1, 2), aesthetic=3.0)
        stages.plan(pipe, diffjax.Request("a cat", size=size).read())
    assert "size.crop, size.aesthetic: no effect" in caplog.text


def test_an_interval_without_a_step_is_said(pipe, caplog):
    with caplog.at_level("WARNING"):
        _make(pipe, guidance=Guidance(5.0, low=1000))
    assert "no step is guided: none has a noise over signal" in caplog.text


# ---- names of diffusers, and names that are close ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_inference_steps=25), "here: sampler=25, or sampler=Sampling(name, steps=25)"),
        (dict(guidance_scale=7.5), "guidance_scale of diffusers is here: guidance=7.5"),
        (dict(negative_prompt="red"), "here: guidance=Guidance(scale, negative='red')"),
        (dict(generator=object()), "here: key=SEED"),
        (dict(num_images_per_prompt=4), "here: num=4"),
        (dict(height=512, width=512), "width of diffusers is here: size=(height, width)"),
        (dict(init_image=g.picture()), "here: image=..., or image=Image(pixels, strength)"),
        (dict(mask_image=g.mask()), "here: image=Image(pixels, mask=...)"),
        (dict(controlnet_conditioning_scale=0.5), "control=[Control(net, image, scale=0.5)]"),
        (dict(denoising_end=0.8), "here: refiner=Refiner(refiner_pipe, start=0.8)"),
        (dict(cross_attention_kwargs={"scale": 1}), "here: lora=[Lora(pipe.load_lora(path), sc"),
        (dict(output_type="pil"), "here: output='pil'"),
        (dict(prompt_embeds=g.picture()), "here: prompt=Embedding(context)"),
        (dict(steps=25), "not an argument of the call, but sampler=Sampling(..., steps=25)"),
        (dict(scale=2), "but guidance=Guidance(..., scale=2) or control=Control(..., scale=2)"),
        (dict(sampeler="euler"), "unknown argument 'sampeler'; choose one of"),
        (dict(sampeler="euler"), "Did you mean 'sampler'?"),
    ],
)
def test_arguments_of_other_names_are_answered(pipe, compiled, options, message):
    with pytest.raises(TypeError) as caught:
        pipe("cat", **options)
    assert message in str(caught.value)
    assert not compiled


def test_names_of_diffusers_are_not_ours():
    known = set(diffjax.Request.__dataclass_fields__) | {"output", "callback"}
    assert not known & set(diffusers_names.ARGUMENTS)
    for name in diffusers_names.METHODS:
        assert not hasattr(diffjax.Pipeline, name), name


def test_methods_of_diffusers_are_answered(pipe):
    with pytest.raises(AttributeError, match="load_lora_weights of diffusers is here: pipe = pipe"):
        pipe.load_lora_weights("file")
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        pipe.paint()


# ---- what is shown ------------------------------------------------------------------------------


def test_objects_with_arrays_are_shown_in_a_few_lines(pipe):
    request = diffjax.Request("cat", latents=_latents(), image=g.picture(), refiner=pipe)
    shown = {
        "pipe": pipe,
        "parts": pipe.parts,
        "model": pipe.parts.unet,
        "text encoder": pipe.parts.texts["text_encoder"],
        "embedding": pipe.embed(g.PROMPTS),
        "image": Image(g.picture(), mask=g.mask()),
        "control": Control(_net(), g.picture()),
        "lora": Lora(pipe.parts.unet.params),
        "refiner": Refiner(pipe),
        "request": request,
        "read request": request.read(),
    }
    for name, value in shown.items():
        text = repr(value)
        assert len(text) < 1500 and text.count("\n") < 10, (name, text)
    assert "51,204 parameters of float32" in repr(pipe)
    assert repr(shown["embedding"]) == "Embedding(context=float32[2, 12, 6], pooled=None)"
    assert repr(Sampling("euler", 5)).startswith("Sampling(name='euler', steps=5")


# ---- steps, editing and decoding ----------------------------------------------------------------


def test_wrong_latents_in_between_are_refused(pipe):
    with pytest.raises(diffjax.RequestError, match="request must be a Request"):
        pipe.steps("cat")
    with pytest.raises(diffjax.RequestError, match="num must be at least 1"):
        pipe.steps(diffjax.Request("cat", num=0))  # at once, not at the first step
    step = next(iter(pipe.steps(diffjax.Request("cat", sampler=2, size=SIZE))))
    assert len(repr(step)) < 1500
    for z, message in (
        (_latents(), r"z must have the shape \(1, 8, 8, 4\)"),
        (_latents(NAN)[:1], "z must be finite"),
        ("z", r"z must be an array \(B, h, w, channels\) of floats"),
    ):
        with pytest.raises(diffjax.RequestError, match=message):
            step.edit(z)
    for latents, output, message in (
        (_latents(NAN), "np", "latents must be finite"),
        (_latents()[0], "np", r"latents must be \(B, h, w, channels\)"),
        (_latents()[..., :3], "np", r"latents must be \(B, h, w, 4\)"),
        (_latents(), "png", "unknown output 'png'"),
    ):
        with pytest.raises(diffjax.RequestError, match=message):
            pipe.decode(latents, output)
