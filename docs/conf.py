"""Sphinx configuration. Warnings are errors: see the ``docs`` target of the Makefile."""

import pyro_sig

project = "pyro_sig"
author = "the pyro_sig developers"
copyright = "the pyro_sig developers"
version = release = pyro_sig.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
nitpicky = False

html_theme = "furo"
html_title = f"pyro_sig {version}"

# Docstrings are reStructuredText with Sphinx fields, as in Pyro.
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Pages whose code is in `code-cell` directives run when the documentation is built.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
