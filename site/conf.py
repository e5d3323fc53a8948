"""Sphinx's settings; `python -m tools.site` writes what it reads, and calls it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the course's modules, and reading.py

project = "Build a language model from scratch"
author = "the authors of the course"
copyright = "the authors of the course. Code: MIT licence; text: CC0"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "reading",
]
smartquotes_action = "q"  # three dots in a shape stay three dots

# Notebooks and pages: what they store is shown, and nothing is run
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widget is stored: its picture stands in its place
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "html_image"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4
myst_update_mathjax = False
mathjax_path = "../scripts/mathjax/es5/tex-svg.js"
mathjax_options = {"defer": "defer"}
mathjax3_config = {
    # Only what Sphinx marks as maths is read; the menu would load more.
    "options": {
        "processHtmlClass": "math",
        "ignoreHtmlClass": ".*",
        "enableMenu": False,
    },
}

# Names to import
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of PyTorch's classes
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "literal"
viewcode_line_numbers = True
toc_object_entries_show_parents = "hide"

# How it looks
html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = [("diagrams.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search is in the sidebar
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if "GITHUB_REPOSITORY" in os.environ:  # a workflow builds the site
    address = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}".format(**os.environ)
    html_theme_options |= {"repository_url": address, "use_repository_button": True}
