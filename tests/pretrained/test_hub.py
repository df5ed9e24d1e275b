"""Names of the Hub, against a server with its routes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from PIL import Image
from safetensors.numpy import load_file, save

import diffjax
from diffjax.pretrained import hub, hub_uploads
from diffjax.pretrained.files import resolve_inside
from diffjax.pretrained.hub_files import Wanted, choose_files, list_variants
from diffjax.pretrained.state_dict import to_state_dict
from diffjax.pretrained.tokenizers import load_tokenizer
from diffjax.runs.locate import read_weights
from diffjax.types import ConfigError
from tests.hub_server import Hub, Repository, read_folder

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "docs/results/models/small-model"
# What a repository of a published model also has, and nobody needs.
WASTE = {
    "README.md": b"# a card",
    "v1-5-pruned.safetensors": b"x" * 5000,
    "unet/diffusion_pytorch_model.bin": b"x" * 5000,
    "unet/diffusion_flax_model.msgpack": b"x" * 5000,
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"x" * 5000,
    "text_encoder/model.ckpt": b"x" * 5000,
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"x" * 5000,
    "feature_extractor/preprocessor_config.json": b"{}",
    "images/cat.png": b"x" * 5000,
}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files():
    return read_folder(MODEL)


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """A Hub that this process asks, with an empty cache."""
    found = Hub()
    index = files["model_index.json"].replace(
        b'"safety_checker": [\n    null,\n    null\n  ]',
        b'"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]',
    )
    assert index != files["model_index.json"]
    found.repositories["owner/model"] = Repository({**files, **WASTE, "model_index.json": index})
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has HTTP alone
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    disable_progress_bars()
    yield found
    found.close()


def list_files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_only_what_is_used_is_downloaded(server, files):
    folder = hub.download("owner/model")
    # The safety checker's folder is not looked into, because nobody asked for it.
    assert list_files(folder) == set(files)
    assert set(server.sent) == set(files)
    assert sum(server.sent.values()) == sum(
        len(server.repositories["owner/model"].commits[folder.name][name]) for name in files
    )
    server.clear()
    assert hub.download("owner/model") == folder
    assert server.requests == [("GET", "/api/models/owner/model")]


def test_a_model_of_the_hub_makes_the_pictures_of_the_folder(server):
    ours, theirs = diffjax.load("owner/model"), diffjax.load(MODEL)
    images = [pipe("a red circle", sampler=2, key=3, output="np") for pipe in (ours, theirs)]
    np.testing.assert_array_equal(*images)
    assert diffjax.open("owner/model").network is not None


def test_parts(server):
    folder = hub.download("owner/model", parts=("vae",))
    assert (folder / "vae/diffusion_pytorch_model.safetensors").is_file()
    assert not (folder / UNET).exists() and (folder / "unet/config.json").is_file()
    asked = hub.download("owner/model", parts=("safety_checker",))
    assert (asked / "safety_checker/model.safetensors").is_file()
    assert hub.download("owner/model/vae") == folder / "vae"
    assert hub.download(f"owner/model/{UNET}") == folder / UNET


def test_every_loader_takes_names(server, files, tmp_path):
    weights = load_file(MODEL / UNET)
    key = next(key for key in weights if key.endswith("attn1.to_q.weight"))
    out, width = weights[key].shape
    module = key.removesuffix(".weight")
    lora = {f"unet.{module}.lora_A.weight": np.ones((2, width), np.float32),
            f"unet.{module}.lora_B.weight": np.ones((out, 2), np.float32)}  # fmt: skip
    pipe = diffjax.load(MODEL)
    width = pipe.parts.texts["text_encoder"].model.net.features
    words = {"<ring>": np.ones((1, width), np.float32)}
    server.repositories |= {
        "owner/lora": Repository({"pytorch_lora_weights.safetensors": save(lora)}),
        "owner/words": Repository(
            {"learned_embeds.safetensors": save(words), "x.bin": b"x" * 5000}
        ),
    }
    merged = pipe.with_lora("owner/lora")
    found = [to_state_dict(one.parts.unet.params)[key] for one in (merged, pipe)]
    np.testing.assert_allclose(found[0] - found[1], 2, atol=1e-5)
    assert "<ring>" in pipe.with_concept("owner/words@main").parts.texts["text_encoder"][0].concepts
    assert "x.bin" not in server.sent
    server.clear()
    for name in ("owner/model", "owner/model/vae", "owner/model/vae/" + UNET.split("/")[1]):
        diffjax.load(MODEL, vae=name)
    assert {name for name in server.sent if name.endswith("safetensors")} == {
        "vae/diffusion_pytorch_model.safetensors"
    }
    read_weights("owner/model", "text_encoder")
    assert "text_encoder/model.safetensors" in server.sent and UNET not in server.sent
    tokens = load_tokenizer("owner/model/tokenizer")
    assert tokens.length == pipe.parts.texts["text_encoder"].tokenizer.length
    net = diffjax.pretrained.load_model("owner/model/unet")
    np.testing.assert_array_equal(to_state_dict(net.params)[key], weights[key])


def test_blobs_that_repositories_share_count_as_the_folder(tmp_path):
    """As huggingface_hub lays them out: snapshot -> blob of the repository -> shared blob."""
    cache = tmp_path / "hub"
    folder, blobs = cache / "models--o--n/snapshots/abc", cache / "models--o--n/blobs"
    shared = cache / "blobs/ab"
    for one in (folder, blobs, shared):
        one.mkdir(parents=True)
    (shared / "abcd").write_text("weights")
    (blobs / "etag").symlink_to(shared / "abcd")
    (folder / "model.safetensors").symlink_to(blobs / "etag")
    with pytest.raises(ValueError, match="link that leaves its folder"):
        resolve_inside(folder, "model.safetensors")
    (cache / "blobs/.huggingface-shared-blobs").write_text("1\n")
    assert resolve_inside(folder, "model.safetensors").read_text() == "weights"


def test_a_connection_that_drops_goes_on_where_it_broke(server, files, monkeypatch):
    # What has come is written in pieces of 10 MB, which is more than this model has.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.drop = {UNET: 100_000}
    folder = hub.download("owner/model", parts=("unet",))
    assert (folder / UNET).read_bytes() == files[UNET]
    assert server.ranges == [(UNET, 100_000)]
    assert server.sent[UNET] == len(files[UNET])


def test_a_file_of_a_wrong_size_is_fetched_again(server, files):
    server.short = {UNET}
    folder = hub.download("owner/model", parts=("unet",))
    assert (folder / UNET).read_bytes() == files[UNET]
    assert server.sent[UNET] == 2 * len(files[UNET]) - 7


def test_the_cache_serves_without_a_network(server, monkeypatch, caplog):
    folder = hub.download("owner/model")
    server.clear()
    assert hub.download("owner/model", local_files_only=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.download("owner/model") == folder
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE lets nothing be fetched"):
        hub.download("owner/other")
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.down = True
    assert hub.download("owner/model") == folder
    server.close()
    assert hub.download("owner/model") == folder
    with pytest.raises(ConnectionError, match="cannot be reached"):
        hub.download("owner/other")


def test_a_cache_that_is_not_complete(server):
    hub.download("owner/model", parts=("vae",))
    with pytest.raises(
        ConfigError, match=r"4 of 10 files are missing .*text_encoder/model.*with a network"
    ):
        hub.download("owner/model", local_files_only=True)
    with pytest.raises(ConfigError, match=r"no owner/other .* local_files_only=True"):
        hub.download("owner/other", local_files_only=True)


def test_revisions(server, files):
    repository = server.repositories["owner/model"]
    old = repository.refs["main"]
    new = repository.commit(
        {**files, "unet/config.json": files["unet/config.json"] + b"\n"}, "next"
    )
    assert hub.download("owner/model", revision="next").name == new
    assert hub.download("owner/model@next").name == new
    assert hub.download(f"owner/model@{old}/vae").parent.name == old
    with pytest.raises(ConfigError, match=r"no revision 'nxt'. Did you mean 'next'.*main, next"):
        hub.download("owner/model@nxt")
    with pytest.raises(ConfigError, match="differs from the one in"):
        hub.download("owner/model@next", revision="main")
    with pytest.raises(ConfigError, match="is on this machine"):
        hub.download(str(MODEL), revision="next")


def test_who_may_read(server, files):
    server.repositories["owner/secret"] = Repository(files, token="right")
    server.repositories["owner/gated"] = Repository(files, gated=True)
    for name in ("owner/secret", "owner/nothing"):
        with pytest.raises(
            ConfigError, match=f"there is no {name} on this machine, .*hf auth login"
        ):
            hub.download(name)
    with pytest.raises(ConfigError, match="to the token in use"):
        hub.download("owner/secret", token="wrong")
    assert hub.download("owner/secret", token="right").is_dir()
    with pytest.raises(ConfigError, match=r"owner/gated is gated: accept its terms at .*hf auth"):
        hub.download("owner/gated")
    server.repositories["owner/model"].token = "right"
    with pytest.raises(ConfigError, match="nobody is logged in"):
        hub.download("owner/secret", token=True)


def test_a_server_that_is_down_says_so(server):
    server.down = True
    with pytest.raises(OSError, match="owner/model"):
        hub.download("owner/model")


def test_uploads(server, tmp_path):
    """A folder goes up with its card, large files by LFS, and comes back as it was."""
    images = diffjax.load(MODEL)("a red circle", sampler=2)
    pipe, out = diffjax.load(MODEL), tmp_path / "mine"
    pipe.save(out, license="apache-2.0", picture=images[0])
    files = hub_uploads.list_uploads(out)
    with pytest.raises(ConfigError, match="log in with 'hf auth login'"):
        hub_uploads.upload(files, "me/mine")
    with pytest.raises(ConfigError, match="must be OWNER/NAME"):
        hub_uploads.upload(files, "mine")
    address = hub_uploads.upload(files, "me/mine", token="right")
    assert address.startswith(f"{server.url}/me/mine/commit/")
    kept = server.repositories["me/mine"]
    there = kept.commits[kept.refs["main"]]
    assert there.keys() - {".gitattributes"} == list_files(out)
    assert all((out / name).read_bytes() == there[name] for name in list_files(out))
    assert hashlib.sha256(there[UNET]).hexdigest() in server.uploads
    card = there["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "diffusers"
    assert "![Images that the model made](sample.png)" in card
    again = diffjax.load("me/mine")("a red circle", sampler=2)
    np.testing.assert_array_equal(np.asarray(images[0]), np.asarray(again[0]))
    with pytest.raises(ConfigError, match="to the token in use"):
        kept.token = "other"
        hub_uploads.upload(files, "me/mine", token="wrong")


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("ours")
    diffjax.load(MODEL).save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "ours"
    with pytest.raises(ConfigError, match="license='My own' is no identifier"):
        diffjax.load(MODEL).save(tmp_path / "other", license="My own")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None, "")),
        ("owner/name@v1.0", ("owner/name", "v1.0", "")),
        ("owner/name@refs/pr/3/unet", ("owner/name", "refs/pr/3", "unet")),
        ("owner/name/a b/c.safetensors", ("owner/name", None, "a b/c.safetensors")),
        ("name", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("~/owner/name", None),
        ("owner/name/../x", None),
        ("runs/weights.safetensors", None),
        (Path("owner/name"), None),
    ],
)
def test_names(text, expected):
    assert hub.parse_name(text) == (expected and hub.HubName(*expected))


def test_web_addresses_are_told_their_names():
    with pytest.raises(ConfigError, match=r"give the name 'o/n@main/x.safetensors'"):
        hub.parse_name("https://huggingface.co/o/n/blob/main/x.safetensors")


def test_a_local_path_wins(server, tmp_path, monkeypatch):
    (tmp_path / "owner/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.download("owner/model") == Path("owner/model") and not server.requests


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffjax\[hub\]'"):
        hub.download("owner/model")


MANIFEST = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "safety_checker": [None, None]}  # fmt: skip
PIPELINE = ["model_index.json", "unet/config.json", "vae/config.json"]


def choose(names, **wanted):
    return choose_files(names, MANIFEST, Wanted(**wanted), "o/n")


def test_variants():
    plain, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
    names = [*PIPELINE, f"unet/{plain}", f"unet/{half}", f"vae/{plain}"]
    assert set(choose(names).files) == {*PIPELINE, f"unet/{plain}", f"vae/{plain}"}
    # As with folders, a network without the variant is read without.
    assert set(choose(names, variant="fp16").files) == {*PIPELINE, f"unet/{half}", f"vae/{plain}"}
    with pytest.raises(ConfigError, match="no weights of variant 'bf16'; it has 'fp16', the one"):
        choose(names, variant="bf16")
    assert set(choose(names, variant="bf16", fall_back=True).files) == set(choose(names).files)
    with pytest.raises(ConfigError, match=r"the unet of o/n has no weights of no variant.*'fp16'"):
        choose([*PIPELINE, f"unet/{half}", f"vae/{half}"])
    with pytest.raises(ConfigError, match="pickles can run code"):
        choose([*PIPELINE, "unet/diffusion_pytorch_model.bin", f"vae/{plain}"])


def test_shards():
    base = "unet/diffusion_pytorch_model"
    shards = [f"{base}.safetensors.index.json", f"{base}-00001-of-00002.safetensors",
              f"{base}-00002-of-00002.safetensors"]  # fmt: skip
    half = [f"{base}.safetensors.index.fp16.json", f"{base}.fp16-00001-of-00001.safetensors"]
    found = choose([*PIPELINE, *shards, *half], parts=("unet",))
    assert set(found.files) == {*PIPELINE, *shards}
    found = choose([*PIPELINE, *shards, *half], parts=("unet",), variant="fp16")
    assert set(found.files) == {*PIPELINE, *half}
    assert list_variants([name.removeprefix("unet/") for name in (*shards, *half)]) == [
        "fp16",
        None,
    ]


def test_other_kinds_of_repositories():
    net = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert choose(net) == (tuple(net[:2]), "")
    lora = ["README.md", "pytorch_lora_weights.safetensors", "other.safetensors"]
    assert choose(lora) == ((lora[1],), lora[1])
    peft = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
    assert choose(peft) == (("adapter_model.safetensors", "adapter_config.json"), peft[1])
    words = ["learned_embeds.safetensors", "learned_embeds.bin", "concept_images/0.jpeg"]
    assert choose(words) == ((words[0],), words[0])
    assert choose(["a.safetensors", "x.png"]) == (("a.safetensors",), "a.safetensors")
    with pytest.raises(ConfigError, match=r"2 files of weights, a.* say which one, as o/n/a.saf"):
        choose(["a.safetensors", "b.safetensors"])
    with pytest.raises(ConfigError, match=r"folders canny; give one, as o/n/canny"):
        choose(["canny/config.json", "canny/diffusion_pytorch_model.safetensors"])
    assert choose(["c/config.json", "c/model.safetensors"], path="c").root == "c"
    with pytest.raises(ConfigError, match=r"no file or folder 'b.safetensor'. Did you mean 'b.saf"):
        choose(["a.safetensors", "b.safetensors"], path="b.safetensor")
    with pytest.raises(ConfigError, match="is a pickle"):
        choose(["a.ckpt", "a.safetensors"], path="a.ckpt")
    assert choose(["words.bin"], path="words.bin", pickles=True).files == ("words.bin",)


def test_the_command_line(server, tmp_path):
    """In a process of its own, by HF_ENDPOINT, as a user would."""
    command = [sys.executable, "-m", "diffjax.cli", "generate", "--model=owner/model@main",
               "--prompt=a red circle", "--steps=2", f"--out={tmp_path / 'out'}"]  # fmt: skip
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"),
           "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "JAX_PLATFORMS": "cpu"}  # fmt: skip
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/00000.png").is_file()
    command = [*command[:3], "generate", "--model=owner/modle", "--prompt=a", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "shows no repository owner/modle" in done.stderr


def test_export_pushes_a_run(server, tmp_path):
    """In a process of its own; what comes back is the model that went up."""
    weights = ROOT / "docs/results/models/cfg14-p10.safetensors"
    (tmp_path / "run/samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "run/samples/00000100.png")
    command = [sys.executable, "-m", "diffjax.cli", "export", f"--weights={weights}",
               f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'digits.safetensors'}",
               "--push=me/digits", "--license=mit"]  # fmt: skip
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"),
           "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "right",
           "JAX_PLATFORMS": "cpu"}  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = server.repositories["me/digits"]
    names = set(kept.commits[kept.refs["main"]])
    assert names == {".gitattributes", "README.md", "sample.png", "digits.safetensors"}
    card = kept.commits[kept.refs["main"]]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert 'diffjax.open("me/digits")' in card and "| data set |" in card
    ours, theirs = diffjax.open(weights), diffjax.open("me/digits")
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)
    sample = [sys.executable, "-m", "experiments.sample", "--weights=me/digits", "--num=2",
              f"--workdir={tmp_path / 'drawn'}", "--steps=2", "--sampler=ddim"]  # fmt: skip
    done = subprocess.run(sample, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "drawn").rglob("*.png"))
    del env["HF_TOKEN"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "log in with 'hf auth login'" in done.stderr
