"""How Sphinx builds the documentation: ``make docs``."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from matl_common.version import __version__  # noqa: E402
from scripts.docs.pages import PUBLIC_MODULES, filled  # noqa: E402

project = "MATL"
author = "The MATL authors"
version = release = __version__
project_copyright = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results"]
# Options begin with two hyphens.
smartquotes = False

myst_enable_extensions = ["colon_fence", "attrs_block"]
# As GitHub has them, so that a link works in both.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
# What else a signature names is another library's or not for import; no build asks the network.
nitpick_ignore_regex = [("py:.*", rf"(?!({'|'.join(PUBLIC_MODULES)})\.[A-Z]\w*$).*")]

html_theme = "furo"
html_title = "MATL"
html_static_path = ["_static"]
html_css_files = ["matl.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5c6b",
        "color-brand-content": "#0b5c6b",
        "color-api-name": "#0b5c6b",
        "color-api-pre-name": "#0b5c6b",
        "font-stack": "system-ui, 'Segoe UI', 'Noto Sans', 'Liberation Sans', sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cc5d4",
        "color-brand-content": "#6cc5d4",
        "color-api-name": "#6cc5d4",
        "color-api-pre-name": "#6cc5d4",
    },
}


def _fill(app: Any, name: str, source: list[str]) -> None:
    source[0] = filled(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Have every page filled before it is parsed."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
