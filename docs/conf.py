"""How Sphinx builds the site (``make docs``). Every warning is an error: broken links, missing docstrings, bad TeX.

The source folder is the repository, so that pages stand where they are read on their own too, and link as files do.
Nothing is fetched while building or reading: formulas are MathML, fonts those of the reader's system.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.main
from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ann2loihi as a2l  # noqa: E402
from toolchain.app.cli import app as commands  # noqa: E402

project = "ann2loihi"
copyright = "the ann2loihi authors, BSD-3-Clause"
version = release = a2l.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "build", "dist"]
nitpicky = True
smartquotes = False  # -- is an option's

html_theme = "furo"
html_title = f"ann2loihi {release}"
html_copy_source = html_show_sphinx = False
html_additional_pages = {"index": "moved.html"}  # whoever opens the folder gets to the first page
templates_path = ["_templates"]
pygments_style, pygments_dark_style = "tango", "monokai"
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"undoc-members": True}
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

log = logging.getLogger(__name__)

#: By full name of an object's home: its name behind the door. What a page documents has no other name.
PUBLIC = {
    f"{getattr(value, '__module__', module)}.{getattr(value, '__name__', attribute)}": f"ann2loihi.{name}"
    for name, (module, attribute) in a2l._HOMES.items()
    if attribute
    for value in [getattr(a2l, name)]
} | {module: f"ann2loihi.{name}" for name, (module, attribute) in a2l._HOMES.items() if not attribute}

#: Folders of the code, whose names references may give in full.
OURS = ("ann2loihi", "exporters", "sim", "toolchain")


def prose(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: * and | are mathematics in ours, and fields of options have help texts."""
    if what != "attribute" and not any(lines):
        log.warning("%s %s has no docstring", what, name)
    text = "\n".join(lines) + "\n"
    pieces = re.split(r"((?<=::\n)(?:[ ]*\n|[ ]+[^\n]*\n)+|``.*?``|:[\w:]+:`.*?`)", text, flags=re.DOTALL)
    pieces[::2] = [re.sub(r"([*|])", r"\\\1", piece) for piece in pieces[::2]]
    lines[:] = "".join(pieces).split("\n")
    if dataclasses.is_dataclass(value):
        helped = [field for field in dataclasses.fields(value) if "help" in field.metadata]
        lines += (f":param {field.name}: {field.metadata['help']}" for field in helped)


def constructor(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Make Python of the defaults that dataclasses compute; what a report holds is read, and built by nobody."""
    if what == "class" and (name.startswith("exporters.report.") or name == "ann2loihi.Report"):
        return "", returned
    return signature and signature.replace("<factory>", "..."), returned


def refer(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> nodes.Node | None:
    """Lead to what stands behind the door; other names have to exist in the code, and stay plain."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.get_domain("py")
    for name in (PUBLIC.get(target), f"ann2loihi.{target}"):
        if name in domain.objects and name != target:
            shown = content if node.get("refexplicit") else nodes.literal(text=name)
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, shown)
    parent = node.parent
    while parent is not None:
        if isinstance(parent, addnodes.desc_signature | nodes.field):  # annotations: types of other packages, too
            return content
        parent = parent.parent
    return content if exists(target) else None


def exists(name: str) -> bool:
    """Whether a dotted name leads to something, in full or from one of our modules."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            return has(import_module(".".join(parts[:length])), parts[length:])
        except ImportError:
            continue
    return any(has(module, parts) for key, module in list(sys.modules.items()) if key.split(".")[0] in OURS)


def has(value: Any, parts: list[str]) -> bool:
    """Whether attributes follow one another from a value; fields without a default count too."""
    for part in parts:
        if part in getattr(value, "__dataclass_fields__", ()):
            return True
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Require every name behind the door on a page."""
    documented = env.get_domain("py").objects
    for name in a2l.__all__:
        if f"ann2loihi.{name}" not in documented and name != "__version__":
            log.warning("ann2loihi.%s is on no page", name)


def generate(app: Sphinx, page: str, source: list[str]) -> None:
    """Write the commands' own help where the page of commands asks for it."""
    if page == "docs/reference/commands":
        command = typer.main.get_command(commands)
        text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="ann2loihi")
        source[0] = source[0].replace("<!-- commands -->", re.sub(r"(?m)^#", "##", text))


def formula(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write TeX as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    try:
        self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=block))
    except Exception as error:  # MathError, or what it trips over
        log.warning("%s: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.connect("autodoc-process-docstring", prose)
    app.connect("autodoc-process-signature", constructor)
    app.connect("missing-reference", refer)
    app.connect("env-check-consistency", complete)
    app.connect("source-read", generate)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
