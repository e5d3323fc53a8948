"""Take out of a definition what a reader can do without: checks, caches, references.

`simplify` gets the source of a function or class of chapter 3 or 4 and returns the same
without calls of guards and without the parameters in `LEFT_OUT`. Whatever was there for
them goes as well, as if it had been worked out by hand with the values that they have
when nobody passes them. The rest of the text stays as it is, comments included, so that
it is as readable as its notebook. `tools.bundle` makes a whole file of such pieces.
"""

import ast
import re
import textwrap
from collections.abc import Iterator

LEFT_OUT = {"cache": "None", "use_cache": "False"}  # parameters, and their values
METHODS = {"new_cache", "_load_from_state_dict"}  # those that only a cache, ... needs
TYPES = {"GPTConfig": "dict"}
# A notebook's equation: "# eq. 4.4, left", "(B, T, D), eq. 3.4", "heads: equation 3.8"
EQUATION = re.compile(r"[,:]? ?\b(?:eq\.|equation) \d\.\d+(?:, (?:left|right))?,?")
WIDTH = 88
ROUNDS = 50  # each works out what has become obvious by the one before; 5 are enough

Edit = tuple[int, int, str]  # from a place in the text to another, and what comes there


def simplify(source: str, guards: set[str]) -> str:
    """The source of a definition without calls of `guards` and without caches.

    Args:
        source: one function, class or constant, with its comments.
        guards: names of functions whose calls are left out.
    """
    lines = (re.sub(r" *# *$", "", EQUATION.sub("", x)) for x in source.split("\n"))
    text = "\n".join(lines).replace("torch.Tensor", "Tensor")
    for _ in range(ROUNDS):
        rewriter = Rewriter(text, guards)
        edits = sorted(rewriter.edits(), key=lambda edit: (edit[0], -edit[1]))
        if not edits:
            return text
        text = apply(text, edits)
    raise RuntimeError(f"still something to leave out after {ROUNDS} rounds: {text}")


def apply(text: str, edits: list[Edit]) -> str:
    """A text with its edits; of two that overlap the outer one, the first to begin."""
    parts, done = [], 0
    for start, end, new in edits:
        if start >= done:
            parts += [text[done:start], new]
            done = end
    return "".join([*parts, text[done:]])


class Rewriter:
    """Finds what can be left out of one definition; `edits` has to be called again."""

    def __init__(self, text: str, guards: set[str]) -> None:
        self.text, self.guards, self.tree = text, guards, ast.parse(text)
        self.lines = [0]
        for line in text.split("\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)

    def edits(self) -> Iterator[Edit]:
        """Every change that can be made now; others may be possible after these."""
        for node in ast.walk(self.tree):
            rule = getattr(self, f"_{type(node).__name__}", None)
            if rule is not None:
                yield from rule(node)

    def place(self, line: int, column: int) -> int:
        start = self.lines[line - 1]
        before = self.text[start:].encode()[:column]  # columns are counted in bytes
        return start + len(before.decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends in the text."""
        return (
            self.place(node.lineno, node.col_offset),
            self.place(node.end_lineno, node.end_col_offset),
        )

    def code(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def whole_lines(self, node: ast.stmt) -> tuple[int, int]:
        """A statement's lines, with its decorators and the comment behind it."""
        first = min([node.lineno, *(d.lineno for d in _decorators(node))])
        return self.lines[first - 1], self.lines[node.end_lineno]

    # Definitions

    def _FunctionDef(self, node: ast.FunctionDef) -> Iterator[Edit]:
        if node.name in METHODS:
            yield *self.whole_lines(node), ""
            return
        yield from self._docstring(node)
        yield from self._parameters(node)
        yield from self._known_values(node)

    def _ClassDef(self, node: ast.ClassDef) -> Iterator[Edit]:
        yield from self._docstring(node)

    def _docstring(self, node: ast.FunctionDef | ast.ClassDef) -> Iterator[Edit]:
        """Leave out the sentences about caches, and a docstring that had no others."""
        if (found := ast.get_docstring(node)) is None:
            return
        before = [" ".join(part.split()) for part in found.split("\n\n")]
        after = [
            " ".join(
                s for s in re.split(r"(?<=[.:]) ", part) if "cache" not in s.lower()
            )
            for part in before
        ]
        if after == before:
            return
        expression, indent = node.body[0], " " * node.body[0].col_offset
        wrapped = [textwrap.fill(p, WIDTH - len(indent)) for p in after if p]
        if not wrapped:
            yield *self.whole_lines(expression), ""
            return
        new = "\n\n".join(wrapped) + ("\n" if len(wrapped) > 1 else "")
        new = textwrap.indent(new, indent).strip(" ") + (
            indent if new[-1] == "\n" else ""
        )
        yield *self.span(expression), f'"""{new}"""'

    def _parameters(self, node: ast.FunctionDef) -> Iterator[Edit]:
        """Leave out parameters, and put their values where the body names them."""
        arguments = node.args
        gone = [a for a in arguments.args if a.arg in LEFT_OUT]
        if not gone:
            return
        start = self.span(arguments.args[0])[0]
        end = max(self.span(x)[1] for x in [*arguments.args, *arguments.defaults])
        end += self.text[end] == ","  # or the formatter would keep a line for each
        n = len(arguments.args) - len(arguments.defaults)
        kept = [
            self.code(a)
            + (f" = {self.code(arguments.defaults[i - n])}" if i >= n else "")
            for i, a in enumerate(arguments.args)
            if a not in gone
        ]
        yield start, end, ", ".join(kept)
        values = {a.arg: LEFT_OUT[a.arg] for a in gone}
        yield from self._put(node.body, values)

    def _known_values(self, node: ast.FunctionDef) -> Iterator[Edit]:
        """Put the value of a variable where it is used, if it has become obvious."""
        names = [n.id for n in ast.walk(node) if _is_name(n, ast.Store)]
        for item in ast.walk(node):
            if (
                isinstance(item, ast.Assign)
                and _is_name(item.targets[0], ast.Store)
                and isinstance(item.value, ast.Constant)
                and item.value.value in (None, False, True, 0)
                and isinstance(item.value.value, bool | int | None)
                and names.count(item.targets[0].id) == 1
            ):
                yield *self.whole_lines(item), ""
                yield from self._put(
                    node.body, {item.targets[0].id: self.code(item.value)}
                )
                return

    def _put(self, body: list[ast.stmt], values: dict[str, str]) -> Iterator[Edit]:
        for item in body:
            for name in ast.walk(item):
                if _is_name(name, ast.Load) and name.id in values:
                    yield *self.span(name), values[name.id]

    # Statements

    def _Expr(self, node: ast.Expr) -> Iterator[Edit]:
        if {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.guards:
            yield *self.whole_lines(node), ""

    def _If(self, node: ast.If) -> Iterator[Edit]:
        if isinstance(node.test, ast.Constant):
            kept = node.body if node.test.value else node.orelse
            lines = ""
            if kept:
                start = kept[0].lineno - 1
                while self.text[self.lines[start - 1] :].lstrip().startswith("#"):
                    start -= 1  # the comments above
                lines = self.text[self.lines[start] : self.lines[kept[-1].end_lineno]]
            text = textwrap.indent(textwrap.dedent(lines), " " * node.col_offset)
            yield *self.whole_lines(node), text

    def _For(self, node: ast.For) -> Iterator[Edit]:
        """Without a counter that is not used any more."""
        call = node.iter
        if isinstance(call, ast.Call) and _called(call) == "enumerate":
            counter, item = node.target.elts
            used = {n.id for n in ast.walk(node) if _is_name(n, ast.Load)}
            if counter.id not in used:
                yield *self.span(node.target), self.code(item)
                yield *self.span(call), self.code(call.args[0])

    # Expressions

    def _arg(self, node: ast.arg) -> Iterator[Edit]:
        if _is_name(node.annotation, ast.Load) and node.annotation.id in TYPES:
            yield *self.span(node.annotation), TYPES[node.annotation.id]

    def _Compare(self, node: ast.Compare) -> Iterator[Edit]:
        both = [node.left, *node.comparators]
        if all(isinstance(each, ast.Constant) for each in both):
            a, b = (each.value for each in both)
            same = a is b or a == b
            wanted = isinstance(node.ops[0], ast.Is | ast.Eq)
            yield *self.span(node), str(same == wanted)

    def _BoolOp(self, node: ast.BoolOp) -> Iterator[Edit]:
        first = node.values[0]
        if isinstance(first, ast.Constant) and len(node.values) == 2:
            decides = bool(first.value) == isinstance(node.op, ast.Or)
            yield *self.span(node), self.code(first if decides else node.values[1])

    def _IfExp(self, node: ast.IfExp) -> Iterator[Edit]:
        if isinstance(node.test, ast.Constant):
            kept = node.body if node.test.value else node.orelse
            yield *self.span(node), self.code(kept)

    def _BinOp(self, node: ast.BinOp) -> Iterator[Edit]:
        if _is_zero(node.left) and isinstance(node.op, ast.Add):
            yield *self.span(node), self.code(node.right)

    def _Call(self, node: ast.Call) -> Iterator[Edit]:
        """Without a None at the end of the arguments, and without arange's 0."""
        last = node.args[-1] if node.args else None
        if isinstance(last, ast.Constant) and last.value is None and not node.keywords:
            others = node.args[:-1]
            start = self.span(others[-1])[1] if others else self.span(last)[0]
            yield start, self.span(last)[1], ""
        if _called(node) == "arange" and len(node.args) == 2 and _is_zero(node.args[0]):
            yield self.span(node.args[0])[0], self.span(node.args[1])[0], ""


def _decorators(node: ast.stmt) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])


def _is_name(node: ast.AST | None, context: type) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, context)


def _is_zero(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant) and node.value == 0 and node.value is not False
    )


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))
