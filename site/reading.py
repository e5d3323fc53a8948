"""What the site adds to Sphinx: diagrams, equations with numbers, links to terms."""

import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

SHAPE = re.compile(r"\(?[BTCHDV](, [BTCHDV]\w*)*\)?")
NOT_LINKED = (
    nodes.FixedTextElement,
    nodes.Inline,
    nodes.title,
    nodes.Admonition,
    nodes.raw,
)


# Diagrams


class Mermaid(Directive):
    """A diagram; static/diagrams.js draws it in the colours of the page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        return [diagram("", "\n".join(self.content))]


class diagram(nodes.General, nodes.FixedTextElement):
    pass


def visit_diagram(writer, node: diagram) -> None:
    text = writer.encode(node.astext())
    writer.body.append(
        f'<div class="diagram"><pre class="mermaid">{text}</pre></div>\n'
    )
    raise nodes.SkipNode


# Equations. Sphinx would put lines into a `split`, in which \tag is an error.


def visit_equation(writer, node: nodes.math_block) -> None:
    text = writer.encode(node.astext().strip())
    writer.body.append(f'<div class="math">\\[{text}\\]</div>\n')
    raise nodes.SkipNode


# The first use of a term on a page leads to the glossary


def link_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if docname in ("glossary", "index") or docname.startswith("api/"):
        return
    entries = terms(app.env)
    if not entries:
        return
    words = "|".join(sorted(map(re.escape, entries), key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({words})(?:s|es)?(?![\w-])", re.IGNORECASE)
    glossary = app.builder.get_relative_uri(docname, "glossary")
    used = set()
    for text in list(doctree.findall(nodes.Text)):
        if not is_prose(text):
            continue
        parts, end = [], 0
        for match in pattern.finditer(text):
            place, says = entries[match[1].lower()]
            if place in used:
                continue
            used.add(place)
            parts.append(nodes.Text(text[end : match.start()]))
            parts.append(reference(match[0], f"{glossary}#{place}", says))
            end = match.end()
        if parts:
            parts.append(nodes.Text(text[end:]))
            text.parent.replace(text, parts)
    for literal in doctree.findall(nodes.literal):
        if SHAPE.fullmatch(literal.astext()) and is_prose(literal):
            link = reference(
                "", f"{glossary}#shapes", "What the letters of shapes mean"
            )
            literal.parent.replace(literal, link)
            link += literal
            return


def terms(env) -> dict[str, tuple[str, str]]:
    """Of each term of the glossary: the name of its place, and how it begins."""
    found = {}
    page = env.get_doctree("glossary")
    for item in page.findall(nodes.definition_list_item):
        says = item.next_node(nodes.definition).astext().replace("\n", " ")
        says = re.split(r"(?<=\.) ", says)[0]
        named = list(item.findall(nodes.term))
        for term in named:
            place = named[0]["ids"][0]
            found[term.astext().lower()] = (place, says)
    return found


def is_prose(node: nodes.Node) -> bool:
    """Whether a text stands in a paragraph, and in nothing that must stay as it is."""
    parent, in_paragraph = node.parent, False
    while parent is not None:
        if isinstance(parent, NOT_LINKED) and not isinstance(
            parent, nodes.strong | nodes.emphasis
        ):
            return False
        in_paragraph |= isinstance(parent, nodes.paragraph)
        parent = parent.parent
    return in_paragraph


def reference(text: str, address: str, says: str) -> nodes.reference:
    link = nodes.reference("", text, internal=True, refuri=address, reftitle=says)
    link["classes"].append("term-link")
    return link


def drop_docstrings_of_types(app, what, name, obj, options, lines) -> None:
    """A constant has no docstring; Python would show that of `dict` or `str`."""
    if what == "data":
        lines.clear()


def setup(app: Sphinx) -> dict:
    app.add_directive("mermaid", Mermaid)
    app.add_node(diagram, html=(visit_diagram, None))
    app.add_node(nodes.math_block, override=True, html=(visit_equation, None))
    app.connect("builder-inited", serve_files)
    app.connect("autodoc-process-docstring", drop_docstrings_of_types)
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": False}


def serve_files(app: Sphinx) -> None:
    """Pictures and scripts lie with the sources, and go to the site as they are."""
    app.config.html_extra_path = [str(app.srcdir / "beside")]
