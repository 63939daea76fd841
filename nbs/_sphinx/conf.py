"How Sphinx reads the notebooks; `build.py` puts them in place."
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
html_theme = 'furo'
html_title = 'clip_dfgs'
html_static_path = ['_static']
html_css_files = ['site.css']
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header']
