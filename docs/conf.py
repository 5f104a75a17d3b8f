"""Configuration of the documentation: ``make docs`` builds the pages into build/site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402

import flowfactor  # noqa: E402

project = "flowfactor"
author = "The flowfactor authors"
copyright = author
release = version = flowfactor.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]

# ---- pages

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "flowfactor"
html_copy_source = False
html_math_renderer = "mathml"
html_static_path, html_css_files = ["static"], ["site.css"]
pygments_style, pygments_dark_style = "friendly", "monokai"

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "image_scrapers": ("gallery.show_figures",),
    "filename_pattern": r"/t\d_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "backreferences_dir": None,
    "download_all_examples": False,
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}
exclude_patterns = ["tutorials"]

# ---- reference

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # attributes of several classes with one name


THIN = '<mspace width="0.17em"/>'
FORMULA_SPACING = {
    r"(</m(?:i|n|sub|sup|frac)>|[)']</mo>)(?=\s*<mi>\w+</mi>\s*<mo>&Appl)": rf"\1{THIN}",
    r"<mo>&ApplyFunction;</mo>(?!\s*<mo[ >])": THIN,
    r"<mo[^>]*>([|‖])</mo>": r'<mo form="prefix" stretchy="false">\1</mo>',
    r"<mo>∼</mo>": '<mo form="infix">∼</mo>',
    r"<mo>'</mo>": '<mo lspace="0" rspace="0">′</mo>',
}
"""What browsers space as LaTeX does: functions, bars, relations at the start of a cell, primes."""


def set_formula(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    markup = tex2mathml(node.astext(), as_block=block)
    for pattern, better in FORMULA_SPACING.items():
        markup = re.sub(pattern, better, markup)
    translator.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def link_files(app: Sphinx, page: str, text: list[str]) -> None:
    """Fill in the changelog; offer Markdown files outside of the documentation as files."""
    if page == "changelog":
        text[0] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text[0] = re.sub(r"\]\((\.\./[^)]*\.md)\)", r"](path:\1)", text[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is ours, and write the Python reference."""
    renderer = (set_formula, None)
    app.add_html_math_renderer("mathml", inline_renderers=renderer, block_renderers=renderer)
    app.connect("source-read", link_files)
    reference.write(ROOT / "docs" / "api")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
