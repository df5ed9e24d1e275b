"""docs/from_diffusers.md is the table of the code, and the code answers by it.

``python -m tests.generate.test_from_diffusers`` writes the page's tables anew.
"""

from pathlib import Path

import pytest

import diffjax
from diffjax.generate import diffusers_names as names

PAGE = Path(__file__).parents[2] / "docs/from_diffusers.md"
MARK = "<!-- The tables below are those of diffjax/generate/diffusers_names.py. -->\n\n"
MODEL = PAGE.parent / "results/models/small-model"
# What users of diffusers type most.
COMMON = (
    *("from_pretrained", "from_single_file", "save_pretrained", "push_to_hub", "to"),
    *("load_lora_weights", "fuse_lora", "unfuse_lora", "unload_lora_weights", "set_adapters"),
    *("load_textual_inversion", "load_ip_adapter", "enable_model_cpu_offload"),
    *("enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling", "safety_checker"),
    *("enable_xformers_memory_efficient_attention", "enable_sequential_cpu_offload", "components"),
)


def test_the_page_is_the_table():
    assert PAGE.read_text().split(MARK)[1] == names.format_tables()


@pytest.fixture(scope="module")
def pipe():
    return diffjax.load(MODEL)


def test_methods_are_answered(pipe):
    assert set(COMMON) <= set(names.METHODS)
    for name, answer in names.METHODS.items():
        for owner in (pipe, diffjax.Pipeline):
            with pytest.raises(AttributeError) as found:
                getattr(owner, name)
            assert str(found.value) == f"{name} of diffusers is here: {answer}"


def test_arguments_have_a_flag():
    from absl import flags

    from diffjax.cli import generate_command  # defines the flags

    assert generate_command.FLAG_GROUPS
    assert set(names.FLAGS) <= set(names.ARGUMENTS)
    for said in names.FLAGS.values():
        assert said.removeprefix("--").partition("=")[0] in flags.FLAGS
    # What is left says where arrays, functions and results are, which a command cannot take.
    arrays = {name for name in names.ARGUMENTS if "embed" in name or name.startswith("callback")}
    others = {"masked_image_latents", "return_dict", "ip_adapter_image"}
    assert set(names.ARGUMENTS) - set(names.FLAGS) <= arrays | others


def test_a_slip_of_a_name_gets_the_closest(pipe):
    with pytest.raises(AttributeError, match=r"Did you mean 'load_lora_weights'\?"):
        pipe.load_lora_weigths("file")
    with pytest.raises(AttributeError, match=r"Did you mean 'with_lora'\?"):
        pipe.with_lorra("file")


def test_classes_are_answered():
    for name, answer in names.CLASSES.items():
        with pytest.raises(AttributeError) as found:
            getattr(diffjax, name)
        assert str(found.value) == f"{name} of diffusers is here: {answer}"


if __name__ == "__main__":
    kept = PAGE.read_text().split(MARK)[0]
    PAGE.write_text(kept + MARK + names.format_tables())
