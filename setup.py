"""Packaging of diffjax. Tool settings are in pyproject.toml, tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

VERSION = re.search(r'__version__ = "(.+)"', (HERE / "diffjax/__init__.py").read_text())[1]

# Lower bounds name the oldest release series the tests have run with. constraints.txt pins every
# package exactly; `make venv` installs those.
REQUIRES = [
    "absl-py>=2.5",
    "array_record>=0.8.6",
    "chex>=0.1.92",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "matplotlib>=3.11",
    "ml-collections>=1.1",
    "numpy>=2.4",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=12.3",
    "safetensors>=0.8",
    "scikit-learn>=1.9",
    "scipy>=1.17",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23",
    "tqdm>=4.70",
]

EXTRAS = {
    "test": [
        "huggingface_hub>=2.4",
        "hypothesis>=6.170",
        "import-linter>=2.16",
        "mypy>=2.4",
        "pyarrow>=22",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6",
    ],
    "parity": [
        "diffusers>=0.42",
        "lpips>=0.1.4",
        "peft>=0.21",
        "pytorch-fid>=0.3",
        "torch-fidelity>=0.4",
        "torch==2.13.0",
        "transformers>=5.23",
    ],
    "docs": [
        "furo>=2025.12.19",
        "ipykernel>=7.4",
        "jupytext>=1.19",
        "latex2mathml>=3.81",
        "myst-parser>=5.2",
        "nbclient>=0.11",
        "sphinx>=9.0",
    ],
    "hub": ["huggingface_hub>=2.4"],
    "parquet": ["huggingface_hub>=2.4", "pyarrow>=22"],
    "demo": ["gradio>=6.31"],
    # Drives the page of `diffjax web` in the machine's own Chromium.
    "browser": ["gradio>=6.31", "playwright>=1.65"],
    "sweep": ["optuna>=5.0", "submitit>=1.5.4"],
    "trackio": ["trackio>=0.43"],
    "wandb": ["wandb>=0.31"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
}

CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Operating System :: MacOS",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Processing",
    "Typing :: Typed",
]

setup(
    name="diffjax",
    version=VERSION,
    description="Diffusion models in JAX: small pure functions that compose",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    keywords="diffusion jax flax ddpm ddim edm stable-diffusion controlnet image-generation",
    classifiers=CLASSIFIERS,
    project_urls={"Documentation": "docs/design.md", "Changelog": "CHANGELOG.md"},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # configs and experiments stay in the checkout, where their commands run.
    packages=find_packages(include=["diffjax", "diffjax.*"]),
    entry_points={"console_scripts": ["diffjax = diffjax.cli.__main__:main"]},
    package_data={"diffjax": ["py.typed", "metrics/weights/*.safetensors"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
)
