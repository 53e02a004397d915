"""Configuration of the documentation site; `make docs` builds it into `build/site`."""
from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import celery_memsync  # noqa: E402

project = "celery-memsync"
copyright = "2026, the celery-memsync authors"
version = release = celery_memsync.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures/*.py"]
nitpicky = True
# Names of other packages, of type variables, and of what is inside of this package.
nitpick_ignore_regex = [
    ("py:.*", r"(celery|django|kombu|redis|typing|collections|dataclasses|str)\b.*"),
    ("py:.*", r"celery_memsync\.(\w+\.)*(T|F|Progress|OnChange|OnInvalidate|Handler|Settings|Environment)"),
    ("py:.*", r"ImproperlyConfigured|LockNotAcquired\.facts"),
]

myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_title = f"celery-memsync {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_sphinx = False

# A single backquote in a docstring is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False

#: Files of the repository that pages refer to, and that are no pages themselves.
REPOSITORY = "https://github.com/celery-memsync/celery-memsync/blob/main"


def link_to_repository(app, docname, source):
    """Let links to files outside of docs/ lead to the repository, after a check that they are there."""
    def replaced(found):
        path, anchor = found[1], found[2] or ""
        target = (Path(app.srcdir) / docname).parent / path
        if target.resolve().is_relative_to(Path(app.srcdir).resolve()) or not target.exists():
            return found[0]
        return f"]({REPOSITORY}/{target.resolve().relative_to(ROOT)}{anchor})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[\w./-]+)(#[\w-]+)?\)", replaced, source[0])


def qualify(app, env, node, contnode):
    """Find a public class or method that a docstring names without its module, as `:exc:` and napoleon do."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    target = node["reftarget"]
    names = f".{target}", f".{target.rpartition('.')[2]}"
    matches = next(filter(None, (
        {full: one for full, one in domain.objects.items()
         if full.endswith(name) and not one.aliased and (node["reftype"] != "meth" or one.objtype == "method")}
        for name in names)), {})
    if len(matches) > 1:  # what AsyncMemSync has is named as in the manager
        matches = {full: one for full, one in matches.items() if "Async" not in full}
    if len(matches) != 1:
        return None
    ((full, one),) = matches.items()
    from sphinx.util.nodes import make_refnode
    return make_refnode(app.builder, node["refdoc"], one.docname, one.node_id, contnode, full)


def setup(app):
    """Connect what is above."""
    app.connect("source-read", link_to_repository)
    app.connect("missing-reference", qualify)
