"""Makes Python source shorter that is sent as text, and leaves what it does. Pure.

Comments, docstrings, types and long names go. A name is changed everywhere at once, and
only where nothing but these sources knows it: what is imported, a builtin, a parameter
that others may name, and what a string holds, stay."""

import ast
import builtins
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

# What is imported for types alone.
_OF_TYPES = ("__future__", "typing", "types", "collections.abc")
# A string in one line, which ends with it at the latest, and quotes of which no pair is
# one.
_STRING = re.compile(r"""('(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?)""")
_LONG_QUOTES = re.compile(r"""'{3}|"{3}""")
# Signs, with a space before or after them that Python does not need.
_SPACED_SIGN = re.compile(r" ?([-+*/%=<>,:|&!]+) ?")


def shortened(sources: list[str]) -> list[str]:
    """The sources, which may use each other's names, without what only people read."""
    trees = [_Stripper().visit(ast.parse(source)) for source in sources]
    _rename(trees)
    texts = []
    for tree in trees:
        lines = ast.unparse(ast.fix_missing_locations(tree)).split("\n")
        texts.append("\n".join(map(_without_spaces, lines)))
    return texts


def _without_spaces(line: str) -> str:
    """A line as `ast` writes it, with none of the spaces that only people need.

    It is indented by one space. What is in quotes stays."""
    code = line.lstrip(" ")
    depth = (len(line) - len(code)) // 4
    if _LONG_QUOTES.search(code):
        return " " * depth + code
    pieces = _STRING.split(code)
    pieces[::2] = [_SPACED_SIGN.sub(r"\1", piece) for piece in pieces[::2]]
    return " " * depth + "".join(pieces)


class _Stripper(ast.NodeTransformer):
    """Removes docstrings and types."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            has_more = len(node.body) > 1
            if ast.get_docstring(node) is not None and has_more:
                del node.body[0]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in _OF_TYPES else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.Assign([node.target], node.value)


# --- names ----------------------------------------------------------------------------


class _Part(NamedTuple):
    """A statement of a module, or a method of one of its classes."""

    node: ast.stmt
    is_method: bool = False


def _parts(tree: ast.Module) -> Iterator[_Part]:
    for node in tree.body:
        yield _Part(node)
        if isinstance(node, ast.ClassDef):
            yield from (_Part(method, is_method=True) for method in node.body)


class _Names(ast.NodeVisitor):
    """Collects names and attributes: those that are ours, and those of others too."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        self.ours: set[str] = set()
        self.others = {*dir(builtins), *keyword.kwlist}
        self.keywords: set[str] = set()
        self.used_attributes: Counter[str] = Counter()
        self.own_attributes: set[str] = set()
        self.other_attributes: set[str] = set()

    def add(self, part: _Part) -> None:
        node = part.node
        if isinstance(node, ast.ClassDef):
            return  # its methods are parts of their own
        if not isinstance(node, ast.FunctionDef):
            self.visit(node)
            return
        is_private = node.name == "__init__" or re.match("_(?!_)", node.name)
        self._add_parameters(node, not part.is_method or bool(is_private))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # One inside of another is given to somebody else, who may name its parameters.
        self.ours.add(node.name)
        self.used[node.name] += 1
        self._add_parameters(node, is_called_by_us=False)
        self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._add_parameters(node, is_called_by_us=False)
        self.generic_visit(node)

    def _add_parameters(
        self, node: ast.FunctionDef | ast.Lambda, is_called_by_us: bool
    ) -> None:
        for part in ast.walk(node.args):
            if isinstance(part, ast.arg):
                is_ours = is_called_by_us or part.arg == "self"
                (self.ours if is_ours else self.others).add(part.arg)
                self.used[part.arg] += 1

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.ours.add(node.name)
            self.used[node.name] += 1
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.used[node.id] += 1
        if isinstance(node.ctx, ast.Store):
            self.ours.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.used_attributes[node.attr] += 1
        is_on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        (self.own_attributes if is_on_self else self.other_attributes).add(node.attr)
        self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> None:
        self.others.add((node.asname or node.name).split(".")[0])

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.others.update(node.names)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg:
            self.keywords.add(node.arg)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.others.add(node.value)
            self.other_attributes.add(node.value)


def _rename(trees: list[ast.Module]) -> None:
    """Give what is ours alone short names.

    What functions share has capital letters, and what each has for itself small ones,
    in the order in which it comes: so functions look alike, and pack well."""
    parts = [part for tree in trees for part in _parts(tree)]
    all_names = _Names()
    of_modules = _Names()
    for part in parts:
        all_names.add(part)
        if isinstance(part.node, ast.FunctionDef | ast.ClassDef):
            if not part.is_method:
                of_modules.ours.add(part.node.name)
        else:
            of_modules.add(part)
    others = all_names.others | all_names.keywords
    shared = of_modules.ours - others
    by_use = [name for name, _ in all_names.used.most_common()]
    by_use += sorted(shared - all_names.used.keys())
    new_shared = _new_names(by_use, shared, others, ascii_uppercase)
    own_attributes = all_names.own_attributes - all_names.other_attributes
    attributes = [name for name, _ in all_names.used_attributes.most_common()]
    new_attributes = _new_names(attributes, own_attributes, set(), ascii_lowercase)
    for part in parts:
        names = _Names()
        names.add(part)
        others = names.others | all_names.keywords
        local = names.ours - others - shared
        new_local = _new_names(names.used, local, others, ascii_lowercase)
        _give(part, new_shared | new_local, new_attributes)


def _new_names(
    order: Iterable[str], ours: set[str], others: set[str], letters: str
) -> dict[str, str]:
    taken = {*order, *others}
    short = (name for name in _short_names(letters) if name not in taken)
    return {name: next(short) for name in order if name in ours and len(name) > 1}


def _short_names(letters: str) -> Iterator[str]:
    """a, b, c, and after z: aa, ab, ac."""
    for length in (1, 2):
        for name in product(letters, repeat=length):
            yield "".join(name)


def _give(part: _Part, names: dict[str, str], attributes: dict[str, str]) -> None:
    whole = part.node
    if isinstance(whole, ast.ClassDef):
        whole.name = names.get(whole.name, whole.name)
        return
    for node in ast.walk(whole):
        match node:
            case ast.Name():
                node.id = names.get(node.id, node.id)
            case ast.arg():
                node.arg = names.get(node.arg, node.arg)
            case ast.Attribute():
                node.attr = attributes.get(node.attr, node.attr)
            case ast.ExceptHandler(name=str(name)):
                node.name = names.get(name, name)
            case ast.FunctionDef():
                is_method = part.is_method and node is whole
                new = attributes if is_method else names
                node.name = new.get(node.name, node.name)
