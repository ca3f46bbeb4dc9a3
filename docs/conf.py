"""The documentation site: `make docs` writes build/docs, offline, and any warning is an error."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "soatfast"
version = release = installed("soatfast")
language = "en"
smartquotes = False
highlight_language = "none"  # of a block without a language: shell lines and drawings

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "formulas",  # docs/_ext: plain formulas of the docstrings, shown as mathematics without a network
    "pages",  # docs/_ext: a page for each public name and each example
]
exclude_patterns = ["_ext", "images"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True
# Names of other libraries in signatures: their inventories are on the network.
nitpick_ignore_regex = [("py:(class|obj|data)", r"(?!soatfast).*")]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_param = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "soatfast"
html_static_path = ["_static"]
html_css_files = ["soatfast.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
