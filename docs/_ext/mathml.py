"""Mathematics as MathML, which browsers draw by themselves: no script, no font, nothing from elsewhere."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)
# The converter knows no sizes of brackets, and MathML stretches them by itself.
SIZES = re.compile(r"\\[bB]ig+[lrm]?(?![A-Za-z])")


def converted(translator, node, block: bool) -> None:
    try:
        markup = tex2mathml(SIZES.sub("", node.astext()), as_block=block)
    except MathError as error:
        logger.warning("cannot be written as MathML: %s (%s)", node.astext(), error, location=node)
        markup = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def inline(translator, node) -> None:
    converted(translator, node, False)


def block(translator, node) -> None:
    converted(translator, node, True)


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
