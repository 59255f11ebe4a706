"""Sphinx's configuration: `make docs` builds the site into docs/_build."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402 - found in this folder

from greensmtp import __version__  # noqa: E402

generate.write_all(HERE / "reference" / "generated")

project = "greensmtp"
author = "The greensmtp authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]
# The generated files are included by pages; they are no pages themselves.
exclude_patterns = ["_build", "reference/generated"]
templates_path: list[str] = []

html_theme = "furo"
html_title = "greensmtp"
html_show_copyright = False
# Blocks without a language are dialogues and output.
highlight_language = "none"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
# The prompt is no part of a command.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
