"""Settings of the documentation site, for Sphinx; `make docs` builds it.

Pages are the Markdown files of docs/, read by MyST. The reference is made of docstrings
(`reference.py`), and formulas become MathML (`mathml.py`), so that a page needs no network.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

project = "diffjax"
author = "the authors of diffjax"
html_title = "diffjax"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "reference",
]
root_doc = "index"
exclude_patterns = ["results/models", "results/data", "site"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Formulas between dollar signs; headings can be linked to, as on a forge.
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Single backticks in docstrings name an object of ours where there is one, and code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Packages of other extras.
autodoc_mock_imports = ["gradio", "optuna", "starlette", "submitit", "trackio", "uvicorn", "wandb"]
# Two modules have a class Features; a type of that name leads to one of them.
suppress_warnings = ["ref.python"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "monokai"
