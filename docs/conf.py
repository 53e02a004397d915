"""Configuration of the documentation site: `make docs` builds it into build/site."""
from __future__ import annotations

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import celery_memsync  # noqa: E402

project = "celery-memsync"
copyright = "the celery-memsync authors"
version = release = celery_memsync.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
intersphinx_mapping = {}
exclude_patterns = ["pictures/*.py"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "celery-memsync"
html_static_path = []
nitpicky = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"
