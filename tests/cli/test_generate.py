"""`diffjax generate`: images with their settings, read back, and made again where they miss."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from tests.parity import generate_cases as g

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    g.pipeline("sd1").save(folder)
    return folder


def _read(path):
    with PIL.Image.open(path) as picture:
        return np.asarray(picture), json.loads(picture.text["diffjax"])


def test_images_settings_and_resumption(execute, model, tmp_path):
    out = tmp_path / "out"
    flags = [f"--model={model}", "--prompt=a red cat", "--prompt=dog", "--steps=3", "--seed=7"]
    flags += ["--sampler=euler_ancestral", "--num=2", "--batch_size=2"]
    execute("generate", *flags, f"--out={out}")
    files = sorted(p.name for p in out.iterdir())
    assert files == [f"{k:05d}.png" for k in range(4)]
    pixels, settings = _read(out / files[2])
    assert pixels.shape == (g.SIZE, g.SIZE, 3)
    assert settings["prompt"] == ["dog"] and settings["seed"] == 9
    assert settings["sampler"] == "euler_ancestral" and settings["guidance"] is None

    # What is missing is made again, in a batch with another neighbour, to the same bytes.
    (out / files[2]).unlink()
    said = execute("generate", *flags, f"--out={out}")
    assert "3 of 4 images are there already" in said
    np.testing.assert_array_equal(_read(out / files[2])[0], pixels)

    # An image gives its settings; flags that are given besides count more.
    again = tmp_path / "again"
    more = [f"--from_image={out / files[2]}", f"--out={again}", "--num=2", "--batch_size=2"]
    said = execute("generate", *more, code=2)
    assert f'00002.png names files: --model="{model}"' in said and "--trust_paths to open" in said
    assert not again.exists()
    said = execute("generate", *more, f"--model={model}")
    assert '00002.png: --prompt=["dog"] --sampler="euler_ancestral" --steps=3 --seed=9' in said
    for path in again.iterdir():
        path.unlink()
    more.append("--trust_paths")
    execute("generate", *more)
    same, stored = _read(again / "00000.png")
    assert stored == settings
    np.testing.assert_array_equal(same, pixels)
    said = execute("generate", *more, "--steps=4", code=2)
    assert "has other settings; choose another --out" in said


def test_controls(execute, model, tmp_path):
    from diffjax.pretrained import save_model

    net = g.controls("sd1")[0]
    save_model(tmp_path / "net:work", net.net, net.params, config=net.config)
    PIL.Image.fromarray(g.picture()).resize((24, 24)).save(tmp_path / "edges.png")
    asked = [f"--model={model}", "--prompt=dog", "--steps=3", "--sampler=ddim"]
    given = f"--control={tmp_path}/net:work:{tmp_path}/edges.png"

    def make(name, *flags):
        execute("generate", *asked, *flags, f"--out={tmp_path / name}")
        return _read(tmp_path / name / "00000.png")

    plain, _ = make("plain")
    none, _ = make("none", f"{given}:0")
    np.testing.assert_array_equal(none, plain)
    controlled, settings = make("controlled", f"{given}:0.5:0:0.7", f"{given}", "--balance=guess")
    assert (controlled != plain).any()
    assert settings["control"][0].endswith(":0.5:0:0.7") and settings["balance"] == "guess"
    said = execute("generate", *asked, f"{given}:1:0.7:0.2", f"--out={tmp_path / 'no'}", code=2)
    assert "0.7" in said and "0.2" in said and "Traceback" not in said


def test_the_variant_of_a_controlnet_is_read_if_it_has_one(tmp_path):
    from diffjax.cli.image_request import load_control
    from diffjax.pretrained import save_model

    net = g.controls("sd1")[0]
    save_model(tmp_path, net.net, net.params, config=net.config)
    assert load_control(str(tmp_path), np.float32, "fp16").net == net.net
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    )
    assert load_control(str(tmp_path), np.float32, "fp16").net == net.net
    with pytest.raises(FileNotFoundError):
        load_control(str(tmp_path), np.float32)


def test_missing_flags_are_named(execute, model, tmp_path):
    assert "--model is needed" in execute("generate", "--prompt=a", code=2)
    assert "--prompt is needed" in execute("generate", f"--model={model}", code=2)
    asked = [f"--model={model}", "--prompt=a", f"--out={tmp_path}"]
    assert "--mask needs --init_image" in execute("generate", *asked, "--mask=m.png", code=2)
    said = execute("generate", *asked, "--prompt_2=b", code=2)
    assert "one text encoder" in said and "Traceback" not in said
    said = execute("generate", *asked, "--control=x:y.png:1", code=2)
    assert "--control=x:y.png:1: must be NET[#KIND]:IMAGE[:SCALE[:START:END]]" in said
    plain = tmp_path / "plain.png"
    PIL.Image.new("RGB", (8, 8)).save(plain)
    said = execute("generate", f"--from_image={plain}", code=2)
    assert "holds no settings" in said and "Traceback" not in said


def test_parts_of_ones_own(execute, model, tmp_path):
    """--vae and --lora take folders; messages say which flag is meant."""
    from diffjax.pretrained import save_model
    from tests.parity import sd_cases

    net, params = sd_cases.random_params(g.VAE)
    save_model(tmp_path / "vae", net, params, config=g.VAE)
    asked = [f"--model={model}", "--prompt=dog", "--steps=2"]

    def make(name, *flags):
        execute("generate", *asked, *flags, f"--out={tmp_path / name}")
        return _read(tmp_path / name / "00000.png")

    plain, _ = make("plain")
    own, settings = make("own", f"--vae={model}")
    np.testing.assert_array_equal(own, plain)
    assert settings["vae"] == str(model)
    other, _ = make("other", f"--vae={tmp_path / 'vae'}")
    assert (other != plain).any()
    words = tmp_path / "cat.safetensors"
    save_file({"emb_params": np.ones((1, 6), np.float32)}, words)
    wrong = {
        f"--vae={words}": "this is a word of textual inversion, which with_concept takes .here: "
        "--concept",
        f"--lora={words}:x": "x: must be FILE or FILE:SCALE",
        f"--lora={words}:nan": "nan: must be FILE or FILE:SCALE",
        f"--concept={model}": "is a folder",
        f"--concept={GOLDEN / 'my-cat.pt'}": "allow_legacy_pickle=True, .*here: --allow_legacy",
        f"--lora={GOLDEN / 'my-cat.pt'}": "is a pickle",
    }
    for flag, message in wrong.items():
        code = 2 if flag.startswith(f"--lora={words}:") else 1
        said = execute("generate", *asked, flag, f"--out={tmp_path / 'no'}", code=code)
        assert re.search(message, said) and "Traceback" not in said, said
        assert "legacy" not in said or "--concept" in flag
