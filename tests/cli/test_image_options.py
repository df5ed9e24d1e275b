"""What a received picture may say, and how the command names the flag that is wrong."""

import dataclasses
import json
import re
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from diffjax.cli import image_options, image_request
from diffjax.types import ConfigError
from tests.parity import generate_cases as g
from tests.pretrained.image_adapters import write_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    g.pipeline("sd1").save(folder)
    return folder


def _save(path, text, *, compressed=False, key="diffjax"):
    info = PngInfo()
    info.add_text(key, text if isinstance(text, str) else json.dumps(text), zip=compressed)
    PIL.Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=info)
    return path


def _with_chunk(path, kind, payload, *, last=False):
    """A PNG with one chunk more, before its pixels or after them."""
    data = _save(path, "x", key="other").read_bytes()
    chunk = len(payload).to_bytes(4, "big") + kind + payload
    chunk += zlib.crc32(kind + payload).to_bytes(4, "big")
    at = data.index(b"IEND" if last else b"IDAT") - 4
    path.write_bytes(data[:at] + chunk + data[at:])
    return path


MALFORMED = {
    "no JSON": ("{prompt: cat}", "no valid JSON"),
    "cut": ('{"prompt": ["cat"', "no valid JSON"),
    "empty": ("", "no settings|no valid JSON"),
    "list": ("[1, 2]", "holds no JSON object"),
    "text": ('"cat"', "holds no JSON object"),
    "deep": ("[" * 60_000, "too deeply nested"),
    "deep object": ('{"a":' * 13_000, "too deeply nested"),
    "digits": ('{"steps": ' + "9" * 5000 + "}", "no valid JSON"),
    "steps deep": ('{"steps": ' + "[" * 900 + "]" * 900 + "}", "steps must be|too deeply nested"),
    "steps text": ({"steps": "50"}, "its setting steps must be a whole number, got '50'"),
    "steps fraction": ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
    "steps bool": ({"steps": True}, "steps must be a whole number, got True"),
    "steps null": ({"steps": None}, "steps must be a whole number, got None"),
    "steps large": ({"steps": 10**30}, "steps is too large a number"),
    "guidance text": ({"guidance": "7.5"}, "guidance must be a number, got '7.5'"),
    "guidance NaN": ('{"guidance": NaN}', "guidance must be finite, got nan"),
    "rescale infinite": ('{"rescale": -Infinity}', "rescale must be finite, got -inf"),
    "rescale overflows": ('{"rescale": 1e999}', "rescale must be finite, got inf"),
    "prompt text": ({"prompt": "cat"}, "prompt must be a list of texts, got 'cat'"),
    "prompt numbers": ({"prompt": [1]}, "prompt must be a list of texts"),
    "prompt null": ({"prompt": None}, "prompt must be a list of texts, got None"),
    "prompt nested": ({"prompt": [["cat"]]}, "prompt must be a list of texts"),
    "prompt half a letter": ('{"prompt": ["\\ud800"]}', "holds text that is not valid Unicode"),
    "negative list": ({"negative": ["red"]}, "negative must be a text"),
    "weighted number": ({"weighted": 1}, "weighted must be true or false, got 1"),
    "steps 0": (
        {"steps": 0},
        "setting steps is wrong: sampler.steps must lie in [1, 10000]",
    ),
    "steps many": ({"steps": 10**9}, "setting steps is wrong: sampler.steps must lie in"),
    "height": ({"height": -(10**9)}, "setting height is wrong: size.height must lie in [0, 65536]"),
    "width": (
        {"width": 2**17},
        "setting width is wrong: size.width must lie in [0, 65536]",
    ),
    "guidance": (
        {"guidance": -1},
        "setting guidance is wrong: guidance.scale must be finite",
    ),
    "guidance large": ({"guidance": 1e300}, "setting guidance is wrong"),
    "rescale": ({"rescale": 1.5}, "setting rescale is wrong: guidance.rescale must lie in [0, 1]"),
    "eta": ({"eta": -0.5}, "setting eta is wrong: sampler.eta must be finite and at least 0"),
    "strength": ({"strength": 2}, "setting strength is wrong: image.strength must lie in [0, 1]"),
    "refiner_start": (
        {"refiner_start": 1},
        "setting refiner_start is wrong: refiner.start must",
    ),
    "clip_skip": (
        {"clip_skip": -1},
        "setting clip_skip is wrong: clip_skip must lie in [0, 65536]",
    ),
    "seed": ({"seed": -1}, "setting seed is wrong: seed must lie in [0, 4294967295], got -1"),
    "seed large": ({"seed": 2**32}, "setting seed is wrong"),
    "sampler": ({"sampler": "eular"}, "setting sampler is wrong: unknown sampler 'eular'"),
    "sampler long": ({"sampler": "x" * 10_000}, "setting sampler is wrong: unknown sampler 'xxx"),
    "grid": ({"grid": ""}, "setting grid is wrong: unknown grid ''"),
    "dtype": ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16"),
    "prediction": ({"prediction": "x"}, "prediction must be one of epsilon, v_prediction"),
    "balance": ({"balance": "all"}, "balance must be one of balanced"),
    "model list": ({"model": ["a"]}, "model must be a text"),
    "model zero": ({"model": "a\0b"}, "model is no path of a file"),
    "variant": ({"variant": "../../x"}, "variant must be a part of a file's name"),
    "pag": ({"pag": -1}, "setting pag is wrong: guidance.perturbed.scale must be finite"),
    "pag_adaptive": (
        {"pag": 1, "pag_adaptive": -1},
        "setting pag_adaptive is wrong: guidance.perturbed.adaptive must be finite",
    ),
    "pag_layers": (
        {"pag": 1, "pag_layers": ","},
        "setting pag_layers is wrong: guidance.perturbed.layers",
    ),
    "image_guidance": (
        {"image_guidance": 0.5},
        "setting image_guidance is wrong: guidance.image must be finite and at least 1",
    ),
    "mask_padding": (
        {"mask_padding": -1},
        "setting mask_padding is wrong: image.mask_padding must lie in [0, 65536]",
    ),
    "noise_level": (
        {"noise_level": 10**5},
        "setting noise_level is wrong: image.noise_level must lie in [0, 10000]",
    ),
    "refiner_guidance": (
        {"refiner_guidance": -1},
        "setting refiner_guidance is wrong: refiner.guidance must be finite",
    ),
    "aesthetic": ({"aesthetic": 1e300}, "setting aesthetic is wrong: size.aesthetic must"),
    "negative_aesthetic": (
        {"negative_aesthetic": -1e300},
        "setting negative_aesthetic is wrong: size.negative_aesthetic must",
    ),
    "timesteps": (
        {"timesteps": "9,8,x"},
        "setting timesteps is wrong: sampler.timesteps must be numbers with commas between them",
    ),
    "timesteps rise": (
        {"timesteps": "9,10"},
        "setting timesteps is wrong: sampler.timesteps[1] must be below 9",
    ),
    "sigmas": ({"sigmas": "3,nan"}, "setting sigmas is wrong: sampler.sigmas[1]"),
    "freeu": ({"freeu": "1,2,3"}, "setting freeu is wrong: freeu must be 4 numbers"),
    "freeu large": (
        {"freeu": "1,2,3,40"},
        "setting freeu is wrong: freeu.s2 must lie in [0, 10.0]",
    ),
    "crop": ({"crop": "1.5,2"}, "setting crop is wrong: size.crop must be 2 whole numbers"),
    "target_size": (
        {"target_size": "0,8"},
        "setting target_size is wrong: size.target must lie in",
    ),
    "seed fraction": ({"seed": 0.5}, "seed must be a whole number"),
    "object as sampler": ({"sampler": {"name": "euler"}}, "sampler must be a text"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_settings_name_the_picture(tmp_path, name):
    text, message = MALFORMED[name]
    path = _save(tmp_path / "received.png", text)
    if "is wrong" in message:
        message = re.escape(message)
    with pytest.raises(ConfigError, match=message) as caught:
        image_options.read_png(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_every_numeric_option_has_a_range():
    """An option that is added later is checked here, too."""
    numeric = {
        field.name
        for field in dataclasses.fields(image_options.ImageOptions)
        if str(field.type).startswith(("int", "float"))
    }
    checked = {key for text, message in MALFORMED.values() if "is wrong" in message for key in text}
    assert numeric <= checked


def test_settings_are_read_wherever_they_stand(tmp_path):
    wanted = {"prompt": ["cät"], "steps": 7, "guidance": 6, "version": "0.1"}
    read = image_options.read_png(_save(tmp_path / "a.png", wanted))
    assert read.steps == 7 and read.prompt == ("cät",) and read.grid is None
    assert read == image_options.read_png(_save(tmp_path / "b.png", wanted, compressed=True))
    text = b"diffjax\0" + json.dumps(wanted).encode()
    behind = _with_chunk(tmp_path / "c.png", b"tEXt", text, last=True)
    assert read == image_options.read_png(behind)


def test_pictures_that_are_none_or_too_large(tmp_path, caplog):
    path = tmp_path / "x.png"

    def refused(message):
        with pytest.raises(ConfigError, match=message) as caught:
            image_options.read_png(path)
        assert str(path) in str(caught.value)

    refused("there is no file")
    path.write_bytes(b"not a picture")
    refused("no PNG")
    PIL.Image.new("RGB", (8, 8)).save(path, "JPEG")
    refused("no PNG")  # whatever it is called
    _save(path, "{}")
    path.write_bytes(path.read_bytes()[:45])
    refused("no PNG|cannot be read|holds no settings")
    _save(path, json.dumps({"prompt": ["a" * 2**16]}))
    refused("more than 2\\^16 characters")
    bomb = b"diffjax\0\0" + zlib.compress(b" " * 2**27, 9)  # 128 MiB in 130 kB
    _with_chunk(path, b"zTXt", bomb)
    refused("cannot be read|no settings|no PNG|no valid JSON")
    data = bytearray(_save(path, {"steps": 3}).read_bytes())
    data[16:24] = (10**5).to_bytes(4, "big") * 2  # 100,000 x 100,000 pixels
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    refused("cannot be read")
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(2**28 + 1)  # a hole
    refused("more than 2\\^28 bytes")
    path.unlink()
    path.mkdir()
    refused("cannot be read")
    other = _save(tmp_path / "other.png", {"steps": 3, "upscale": 2})
    with caplog.at_level("WARNING"):
        image_options.read_png(other)
    assert 'settings that are not known: ["upscale"]' in caplog.text


FOREIGN = {
    "model": "/secret/secret",
    "tokenizer": "/etc",
    "vae": "/secret/vae",
    "lora": ["/secret/x.safetensors:0.5"],
    "concept": ["x.pt:word"],
    "init_image": "/secret/passport.png",
    "mask": "m.png",
    "depth": "/secret/depth.png",
    "control": ["net:/secret/scan.png"],
    "refiner": "//server/share",
    "image_prompt": ["adapter:/secret/face.png:0.5"],
}


def test_files_that_a_picture_names_are_not_opened(execute, model, tmp_path):
    assert set(FOREIGN) == set(image_options.PATHS)
    for name, value in FOREIGN.items():
        path = _save(tmp_path / f"{name}.png", {"prompt": ["cat"], name: value})
        asked = [f"--from_image={path}", f"--out={tmp_path / 'out'}"]
        asked += [] if name == "model" else [f"--model={model}"]
        said = execute("generate", *asked, code=2)
        assert f"names files: --{name}={json.dumps(value)}" in said, said
        assert not (tmp_path / "out").exists()
        if name == "init_image":
            said = execute("generate", *asked, "--trust_paths", code=2)
            assert "--init_image: /secret/passport.png cannot be read" in said
    # What is given besides is not the picture's; empty flags leave its files out.
    path = _save(tmp_path / "all.png", {"prompt": ["cat"], "steps": 2, "strength": 0.5, **FOREIGN})
    empty = [f"--{name}=" for name in FOREIGN if name != "model"]
    out = tmp_path / "out"
    said = execute("generate", f"--from_image={path}", f"--model={model}", *empty, f"--out={out}")
    assert '--prompt=["cat"]' in said and "--steps=2" in said
    with PIL.Image.open(out / "00000.png") as picture:
        stored = json.loads(picture.text["diffjax"])
    assert stored["strength"] is None and stored["lora"] == [] and not stored["init_image"]


def test_a_picture_cannot_write_to_the_terminal(execute, model, tmp_path):
    path = _save(tmp_path / "x.png", {"prompt": ["\x1b[2J\x07cat"], "steps": 2})
    said = execute(
        "generate", f"--from_image={path}", f"--model={model}", f"--out={tmp_path / 'out'}"
    )
    assert r"\u001b[2J\u0007cat" in said and "\x1b[2J" not in said


WRONG = {
    "--guidance=nan": "--guidance: guidance.scale must be finite",
    "--guidance=-1": "--guidance: guidance.scale must be finite and at least 0",
    "--rescale=1.5": "--rescale: guidance.rescale must lie in [0, 1], got 1.5",
    "--steps=0": "--steps: sampler.steps must lie in [1, 10000]",
    "--sampler=eular": "--sampler: unknown sampler 'eular'",
    "--sampler=": "--sampler: unknown sampler ''",
    "--grid=karas": "--grid: unknown grid 'karas'",
    "--eta=inf": "--eta: sampler.eta must be finite",
    "--height=-8": "--height: size.height must lie in [0, 65536], got -8",
    "--clip_skip=-1": "--clip_skip: clip_skip must lie in [0, 65536], got -1",
    "--seed=-1": "--seed: image k has the seed -1 + k, but seeds must lie in [0, 2^32)",
    "--seed=4294967296": "--seed: image k has the seed 4294967296 + k",
    "--num=0": "--num and --batch_size must be at least 1",
    "--num=10000000": "--num: 10000000 images are more than the 1000000 of one command",
    "--refiner=x --refiner_start=5": "--refiner_start: refiner.start must lie between 0 and 1",
    "--mask=m.png": "--mask needs --init_image",
    "--strength=0.5": "--strength needs --init_image",
    "--refiner_start=0.5": "--refiner_start needs --refiner",
    "--balance=guess": "--balance needs --control",
    "--init_image=no.png": "--init_image: no.png cannot be read",
    "--lora=x.safetensors:high": "--lora=x.safetensors:high: must be FILE or FILE:SCALE",
    "--lora=:0.5": "--lora=:0.5: must be FILE or FILE:SCALE",
    "--concept=:cat": "--concept=:cat: must be FILE or FILE:WORD",
    "--lora=x.safetensors:nan": "--lora=x.safetensors:nan: must be FILE or FILE:SCALE",
    f"--prompt={'a' * 70_000}": "--prompt: a prompt and its settings may have 65,000 characters",
    "--trust_paths": "--trust_paths needs --from_image",
}


@pytest.mark.parametrize("flag", WRONG, ids=lambda flag: flag[:30])
def test_a_wrong_flag_is_named_before_a_model_is_loaded(execute, tmp_path, flag):
    out = tmp_path / "out"
    asked = ["--model=none", "--prompt=cat", *flag.split(), f"--out={out}"]
    said = execute("generate", *asked, code=2)
    assert f"error: {WRONG[flag]}" in said and "Traceback" not in said
    assert not out.exists()


def test_a_file_in_place_of_the_folder_of_images_is_named(execute, tmp_path):
    out = tmp_path / "out"
    out.write_text("x")
    said = execute("generate", "--model=none", "--prompt=cat", f"--out={out}", code=2)
    assert f"error: --out={out} is a file" in said and out.read_text() == "x"


def test_a_flag_that_does_not_fit_the_model_is_named(execute, model, tmp_path):
    asked = [f"--model={model}", "--prompt=cat", "--steps=2", f"--out={tmp_path}"]
    for flags, message in (
        (["--width=17"], "--width: height and width must be multiples of 2, got (16, 17); the ne"),
        (["--clip_skip=3"], "--clip_skip: clip_skip must leave a layer of 3"),
        (["--negative_2=red"], "--negative: guidance.negative: this model has one text encoder"),
        (["--eta=0.5", "--sampler=euler"], "--sampler: EulerDiscreteScheduler takes no eta"),
        (["--steps=1001"], "--steps: "),
    ):
        said = execute("generate", *asked, *flags, code=2)
        assert f"error: {message}" in said and "Traceback" not in said


def test_flags_reach_the_request(tmp_path, monkeypatch):
    grey = PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "grey.png")
    path = str(tmp_path / "grey.png")
    options = image_options.ImageOptions(
        prompt=("cat",),
        timesteps="9,5.5",
        sigmas="3,0",
        pag=2.0,
        pag_layers="mid_block,up_blocks.0",
        pag_adaptive=0.5,
        freeu="1.5,1.6,0.9,0.2",
        image_guidance=1.25,
        **dict(init_image=path, mask=path, mask_padding=3, depth=path, noise_level=7),
        **dict(original_size="8,9", crop="1,2", target_size="3,4", aesthetic=7.0),
        **dict(negative_original_size="5,6", negative_crop="3,1", negative_target_size="2,1"),
        negative_aesthetic=1.0,
        **dict(refiner="r", refiner_prompt="dog", refiner_negative="red", refiner_guidance=2.0),
    )
    asked = image_request.make_request(options)
    assert asked.sampler.timesteps == (9, 5.5) and asked.sampler.sigmas == (3, 0)
    assert asked.guidance.perturbed == (2.0, ("mid_block", "up_blocks.0"), 0.5)
    assert asked.guidance.image == 1.25 and asked.freeu == (1.5, 1.6, 0.9, 0.2)
    assert (asked.image.mask_padding, asked.image.noise_level) == (3, 7)
    np.testing.assert_array_equal(asked.image.depth, np.asarray(grey, np.float32))
    assert asked.size[2:] == ((8, 9), (1, 2), (3, 4), 7.0, (5, 6), (3, 1), (2, 1), 1.0)
    monkeypatch.setattr(image_request, "load_pipeline", lambda *_, **__: g.pipeline("refiner"))
    pipe = g.pipeline("sd1")
    refiner = image_request.add_networks(asked, options, pipe).read_refiner()
    assert refiner.prompt == ("dog",)
    assert refiner.guidance.scale == 2.0 and refiner.guidance.negative == ("red",)
    adapter = write_adapter(tmp_path, pipe.parts.unet, "base")
    options = image_options.ImageOptions(image_prompt=(f"{adapter}:{path}:0.5",))
    (prompt,) = image_request.add_networks(asked, options, pipe).list_image_prompts()
    assert prompt.scale == 0.5 and prompt.image.size == (16, 16)
    assert prompt.adapter.projection.tokens == 4
    options = image_options.ImageOptions(image_prompt=(f"{path}:{path}",))
    with pytest.raises(ValueError, match=r"--image_prompt: .*grey\.png is no complete safetensors"):
        image_request.add_networks(asked, options, pipe)
