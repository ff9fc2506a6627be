"""The configuration of Sphinx: the pages of this directory, and the API from its docstrings."""

import os
import re
from importlib.metadata import version as installed

os.environ.setdefault("KERAS_BACKEND", "numpy")

project = "kpatch"
author = "the authors of kpatch"
release = version = installed("kpatch")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
root_doc = "index"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"  # signatures show them
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False

nb_execution_mode = "force"  # the notebooks in the repository have no outputs
nb_execution_raise_on_error = True
nb_execution_timeout = 300

smartquotes = False  # `--in-place` is an option, not a dash

html_theme = "furo"
html_title = f"kpatch {release}"
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "


def setup(app):
    app.connect("autodoc-process-docstring", _code)
    app.connect("sphinx-click-process-description", _plain)


def _code(app, what, name, obj, options, lines):
    """Docstrings mark code as Markdown does; reStructuredText wants two backticks, and a break before a letter."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(\w?)", r"``\1``\\ \2", line) for line in lines]


def _plain(app, context, lines):
    """The help of a command is plain text."""
    lines[:] = [re.sub(r"([*_`@])", r"\\\1", line) for line in lines]
