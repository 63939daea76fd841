"How Sphinx reads the notebooks; `build.py` puts them in place."
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = 'clip_dfgs'
author = 'The clip_dfgs developers'
copyright = '2026 onwards, ' + author
extensions = ['myst_nb', 'sphinx_external_toc', 'sphinxcontrib.bibtex']
external_toc_path = '_toc.yml'
bibtex_bibfiles = ['references.bib']
nb_execution_mode = 'off'          # the outputs are those of the repository
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # tables of an output are tables
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
html_math_renderer = 'mathml'      # formulas are there without a network
html_theme = 'furo'
html_title = 'clip_dfgs'
html_static_path = ['_static']
html_css_files = ['site.css']
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header']


def inline_math(writer, node):
    "A formula as MathML."
    writer.body.append(convert(node.astext()))
    raise SkipNode


def block_math(writer, node):
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app): app.add_html_math_renderer('mathml', (inline_math, None), (block_math, None))
