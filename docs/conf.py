"""How the documentation is built: everything on it comes from this folder and the source."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "polytask"
author = "The polytask developers"
release = metadata.version("polytask")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "mathml",
    "polytask_balancers",
    "polytask_reference",
    "polytask_sharings",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = f"polytask {release}"
html_static_path = ["_static"]
# Mathematics as MathML, which browsers draw by themselves: nothing is loaded from elsewhere.
html_math_renderer = "mathml"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
nitpicky = False
suppress_warnings = ["ref.python"]
# Docstring examples run under pytest, where a module's own names are known.
doctest_test_doctest_blocks = ""
