"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def _convert(text: str, display: str, node: nodes.Node) -> str:
    """Convert a formula of LaTeX; warn of one that cannot be read, which ends a strict build."""
    try:
        done = str(convert(text, display=display))
    except Exception as error:  # latex2mathml has no common class of errors
        logger.warning("cannot read the formula %r: %r", text, error, location=node)
        return ""
    # Commands that are not known come out as their names.
    if any(mark in done for mark in ("<mi>\\", "<mtext>\\", "<mi>&<")):
        logger.warning("unknown command in the formula %r", text, location=node)
    return done


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(_convert(node.astext(), "inline", node))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands alone."""
    done = _convert(node.astext(), "block", node)
    self.body.append(self.starttag(node, "div", CLASS="math-wide") + done + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
