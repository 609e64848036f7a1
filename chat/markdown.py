"""Markdown of a reply -> HTML for the page: no HTML of the model's, no pictures."""

import functools

from markdown_it import MarkdownIt


@functools.cache
def renderer() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")
    markdown.add_render_rule("link_open", open_link)
    return markdown


def open_link(renderer, tokens, index, options, env) -> str:
    """Links open in a new tab, which learns nothing of the page."""
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    return renderer.renderToken(tokens, index, options, env)


def to_html(text: str) -> str:
    return renderer().render(text)
