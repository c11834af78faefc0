"""Sphinx's settings of the site; `build.py` calls it. Nothing that a page loads lies elsewhere."""

import shutil
from importlib.util import find_spec
from pathlib import Path

project = "vplib"
author = "The vplib authors"
project_copyright = "The vplib authors, Apache-2.0"
html_title = "vplib"
language = "en"

extensions = ["myst_nb", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_dmath_allow_labels = False  # what follows a formula in parentheses is text
nb_execution_mode = "off"  # pages show the run that they are given
nb_ipywidgets_js = {}  # by default from elsewhere; `widgets.explore` leaves pictures

# MathJax as files of a package. Sphinx would take it from elsewhere.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": False,
    "show_navbar_depth": 2,
    "use_download_button": False,  # each page has its own links to the notebook
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the side bar has the search
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_search_summary = False  # of pages this long, it shows what stands anywhere
html_last_updated_fmt = None


def add_mathjax(app, error):
    """Copies the one script that pages load, and its fonts."""
    package = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    target = Path(app.outdir, "_static", "mathjax")
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2"):
        if (package / part).is_dir():
            shutil.copytree(package / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(package / part, target / part)


def setup(app):
    """Called by Sphinx."""
    app.connect("build-finished", add_mathjax)
