"""Finds the code in what models send as code: in fences, in JSON, after prompts.

It is sent only with a text that may need it, and Python's own parser decides. What is
Python stays as it is, unless it is nothing but a string that holds a program. What is
none is tried without what models put around code, by one rule and then by several,
until it is Python. Lines keep their numbers: what goes becomes a blank line. Nothing
but the standard library, and what Python 3.8 knows."""

from __future__ import annotations

import ast
import builtins
import contextlib
import itertools
import json
import re
import warnings
from typing import Any

MOST_LAYERS = 5  # such as a fence around a string of JSON that holds a program
MOST_RULES = 3  # that are tried together
# A first line that names the language, and is no code.
LANGUAGE_LINE = re.compile(r"(?i)i?python3?")
CELL_MAGIC = re.compile(r"%%\w")
# What a chat's own format leaves at the ends of a text: "<|im_end|>", "</s>", "<code>".
MARK = r"(?:<\|\w+\|>(?:assistant|python)?|</?(?:s|code|pre|python)(?: [^<>\n]*)?>)"
MARK_AT_START = re.compile(rf"\s*{MARK}")
MARK_AT_END = re.compile(rf"{MARK}\s*\Z")
LONGEST_MARK = 100
FENCES = ("```", "~~~")
MOST_FENCE_INDENTATION = 3  # with more it is no fence to Markdown
# What a fence says of the code below it: "python", "{.python}", "python title='a.py'".
# `tool_code` is Gemini's word.
PYTHON_INFO = re.compile(r"(?i)[{.]*(?:i?py(?:thon)?3?|tool_code)\b[^`]*")
# A string, which may lack its end, or a comment. One ends at the two characters `\n`,
# too: where these stand for a new line, code follows.
STRING_OR_COMMENT = re.compile(
    r"('''(?:[^\\]|\\.)*?(?:'''|\\?\Z)"
    r'|"""(?:[^\\]|\\.)*?(?:"""|\\?\Z)'
    r"|'(?:[^'\\\n]|\\(?:\r\n|.))*'?"
    r'|"(?:[^"\\\n]|\\(?:\r\n|.))*"?'
    r"|#(?:(?!\\n)[^\n])*)",
    re.DOTALL,
)
ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'", "nbsp": " "}
ENTITIES.update({"#34": '"', "#39": "'", "#x22": '"', "#x27": "'"})
ENTITY = re.compile(f"&({'|'.join(ENTITIES)});")
SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
DOCTEST_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.)(?: |\r?$)")
NOTEBOOK_PROMPT = re.compile(r"[ \t]*(?:In ?\[\d*\]|\.\.\.+): ?")
NOTEBOOK_OUTPUT = re.compile(r"[ \t]*Out ?\[\d*\]:")
# "pip3 install x", "!python -m pip install x", "sudo apt-get update".
INSTALL = re.compile(
    r"[!%]?[ \t]*(sudo )?(?:python3? -m )?(pip|apt(?:-get)?)3? "
    r"((?:install|update|upgrade|-\w).*)"
)
# The tool's parameters, in whichever way a model names them.
PARAMETERS = {"code", "lang", "language", "timeout"}
FIRST_IMPORT = re.compile(r"\s*(?:import \w|from [\w.]+ import )")


def runnable(code: str, shell: Any = None) -> str:
    """The code in a text, or the text where that is not sure.

    `shell` is IPython's, for a cell; without one it is for a script."""
    found = code
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the code is compiled to run
        found = Finder(shell).code_in(code.lstrip("\ufeff"))
        if shell:
            found = with_first_line(found)
    return found


class Finder:
    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._known = {*dir(builtins), *(shell.user_ns if shell else ())}

    def code_in(self, text: str) -> str:
        for _ in range(MOST_LAYERS):
            inner = self._without_layer(text)
            if inner == text:
                break
            text = inner
        return text

    def _parse(self, code: str) -> ast.Module | None:
        """None if it is no Python, or nothing but comments; a cell may have magics.

        `y = x &lt; 3` is Python of an unknown name, `lt`."""
        with contextlib.suppress(Exception):
            code = self._shell.transform_cell(code) if self._shell else code
            tree = ast.parse(code)
            names_of_entities = ENTITIES.keys() - self._known - bound_names(tree)
            if tree.body and names_of_entities.isdisjoint(used_names(tree)):
                return tree
        return None

    def _without_layer(self, text: str) -> str:
        """Without one thing that is around the code, or as it is if there is none."""
        inner = without_language(text)
        if self._shell:
            inner = without_comments_before_magic(inner)
        if inner != text:
            return inner
        inner = without_prompts(text)
        if inner != text and self._parse(inner):
            return inner
        inner = self._program_in_string(text)
        if inner != text or self._parse(text):
            return inner
        return self._first_that_parses(text)

    def _first_that_parses(self, text: str) -> str:
        """By as few rules as possible: others would change what stands in a string."""
        texts: dict[tuple[Any, ...], str] = {(): text}
        tried = {text}
        all_rules = (
            without_marks,
            without_fences,
            without_entities,
            self._with_newlines,
            without_odd_spaces,
            self._with_installs,
            without_indentation,
        )
        for count in range(1, MOST_RULES + 1):
            for rules in itertools.combinations(all_rules, count):
                changed = rules[-1](texts[rules[:-1]])
                texts[rules] = changed
                if changed not in tried and self._parse(changed):
                    return changed
                tried.add(changed)
        # The code has an error of its own. Outside of a string a fence is no Python.
        inner = without_marks(text)
        unfenced = without_fences(inner)
        return unfenced if unfenced != inner else text

    # --- strings that hold a program --------------------------------------------------

    def _program_in_string(self, text: str) -> str:
        inner = text_in_literal(text)
        if inner is None:
            return text
        code = self.code_in(inner)
        return code if self._is_program(code) else text

    def _is_program(self, code: str) -> bool:
        """Whether it is no text that somebody wants to see, such as "hello" or "f(x)".

        A program does something, by names that are known."""
        tree = self._parse(code)
        if not tree:
            return bool(FIRST_IMPORT.match(code))  # of one with an error
        kinds = {type(node) for node in ast.walk(tree)}
        computes = ast.Assign in kinds and isinstance(tree.body[-1], ast.Expr)
        if kinds.isdisjoint({ast.Call, ast.Import, ast.ImportFrom}) and not computes:
            return False
        return used_names(tree) <= self._known | bound_names(tree)

    # --- rules that know for what the code is -----------------------------------------

    def _with_newlines(self, text: str) -> str:
        r"""With new lines for the two characters `\n`, if there are no others.

        In strings they stay, unless quotes have backslashes before them as well."""
        if "\n" in text.strip() or "\\n" not in text:
            return text
        outside_strings = in_code(r"(?:\\r)?\\n", "\n", text)
        if not self._parse(outside_strings):
            with contextlib.suppress(ValueError):
                everywhere = str(json.loads(f'"{text.strip()}"'))
                if self._parse(everywhere):
                    return everywhere
        return outside_strings

    def _with_installs(self, text: str) -> str:
        """With first lines such as `pip install x` as a cell or a script has them."""
        lines = text.split("\n")
        for number, line in enumerate(lines):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            found = INSTALL.fullmatch(line)
            if not found:
                break
            sudo, program, arguments = found[1] or "", found[2], found[3]
            if not self._shell:
                program = program.replace("pip", "python3 -m pip")
                command = f"{sudo}{program} {arguments}"
                lines[number] = f"__import__('os').system({command!r})"
            elif program == "pip":
                lines[number] = f"%pip {arguments}"
            else:
                lines[number] = f"!{sudo}{program} {arguments}"
        return "\n".join(lines)


def text_in_literal(text: str) -> str | None:
    """The text that a literal is, or that is its `code`; None if it is no such one."""
    text = text.strip()
    value: Any = None
    if text[:1] in ("'", '"', "{"):
        try:
            value = json.loads(text, strict=False)
        except ValueError:
            with contextlib.suppress(Exception):
                value = ast.literal_eval(text)
    if isinstance(value, dict) and value.keys() <= PARAMETERS:
        value = value.get("code")
    return value if isinstance(value, str) else None


def bound_names(tree: ast.Module) -> set[str]:
    """The names that a program gives to something, in any of its scopes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        for field in ("name", "asname", "arg", "rest"):
            names.add(str(getattr(node, field, "")).partition(".")[0])
    if "*" in names:  # from math import *
        names |= used_names(tree)
    return names


def used_names(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


# --- what stands around code ----------------------------------------------------------


def first_line(lines: list[str]) -> int:
    """The number of the first line that is not blank, from 0 on; 0 if all are."""
    return next((number for number, line in enumerate(lines) if line.strip()), 0)


def without_language(text: str) -> str:
    """Without a first line that is `python`, if code follows it."""
    lines = text.split("\n")
    first = first_line(lines)
    is_named = LANGUAGE_LINE.fullmatch(lines[first].strip())
    if is_named and "".join(lines[first + 1 :]).strip():
        lines[first] = ""
    return "\n".join(lines)


def without_comments_before_magic(text: str) -> str:
    """A cell magic such as `%%time` has to come first; blank lines may come before."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        line = line.strip()
        if CELL_MAGIC.match(line):
            return "\n" * number + "\n".join(lines[number:])
        if line and not line.startswith("#"):
            break
    return text


def without_prompts(text: str) -> str:
    """Without the prompts of Python and of notebooks, and without what follows them.

    Of a notebook's only what is named as output is known to be no code."""
    lines = text.split("\n")
    first = lines[first_line(lines)]
    is_doctest = bool(DOCTEST_PROMPT.match(first))
    if not is_doctest and not NOTEBOOK_PROMPT.match(first):
        return text
    is_code = False
    for number, line in enumerate(lines):
        prompt = (DOCTEST_PROMPT if is_doctest else NOTEBOOK_PROMPT).match(line)
        if prompt:
            line = line[prompt.end() :]
            is_code = not is_doctest
        elif NOTEBOOK_OUTPUT.match(line):
            is_code = False
        lines[number] = line if prompt or is_code else ""
    return "\n".join(lines)


def without_marks(text: str) -> str:
    before = None
    while text != before:
        before = text
        found = MARK_AT_START.match(text)
        if found:
            text = "\n" * found[0].count("\n") + text[found.end() :]
        found = MARK_AT_END.search(text, max(0, len(text.rstrip()) - LONGEST_MARK))
        if found:
            text = text[: found.start()]
    return text


def without_fences(text: str) -> str:
    """The lines that stand in fences, the others blank; the text if none does.

    What stands in the fences of another language is no code, and a fence in a string
    is none."""
    lines = text.split("\n")
    kept = [""] * len(lines)
    in_strings = lines_in_strings(text)
    block = ""  # what is in the fences that are open: "code", "other" or nothing
    for number, line in enumerate(lines):
        info = None if number in in_strings else info_of_fence(line)
        if block and info == "":
            block = ""
        elif info is not None and not block and is_of_python(info):
            block = "code"
        elif info and not block and line.lstrip().startswith("`"):
            block = "other"
        elif block == "code":
            kept[number] = line
    return "\n".join(kept) if "".join(kept).strip() else text


def info_of_fence(line: str) -> str | None:
    """What stands after a fence's marks, "" if nothing does; None if it is no fence."""
    unindented = line.lstrip(" ")
    indentation = len(line) - len(unindented)
    if not unindented.startswith(FENCES) or indentation > MOST_FENCE_INDENTATION:
        return None
    return unindented.lstrip(unindented[0]).strip()


def is_of_python(info: str) -> bool:
    return not info or bool(PYTHON_INFO.fullmatch(info))


def lines_in_strings(text: str) -> set[int]:
    """The numbers of the lines that begin in a string."""
    numbers: set[int] = set()
    number = 0
    at = 0
    for found in STRING_OR_COMMENT.finditer(text):
        number += text.count("\n", at, found.start())
        at = found.start()
        more = found[0].count("\n")
        numbers.update(range(number + 1, number + 1 + more))
    return numbers


# --- what stands in code --------------------------------------------------------------


def in_code(pattern: str | re.Pattern[str], replacement: str, text: str) -> str:
    """The text with something replaced where it stands in no string or comment."""
    pieces = STRING_OR_COMMENT.split(text)
    pieces[::2] = [re.sub(pattern, replacement, piece) for piece in pieces[::2]]
    return "".join(pieces)


def without_entities(text: str) -> str:
    return ENTITY.sub(lambda found: ENTITIES[found[1]], text)


def without_odd_spaces(text: str) -> str:
    return in_code(ZERO_WIDTH, "", in_code(SPACE, " ", text))


def without_indentation(text: str) -> str:
    """Without what the first line is indented by, in all lines that have it."""
    lines = text.split("\n")
    first = lines[first_line(lines)]
    indentation = first[: len(first) - len(first.lstrip())]
    kept = [
        line[len(indentation) :] if line.startswith(indentation) else line
        for line in lines
    ]
    return "\n".join(kept)


def with_first_line(text: str) -> str:
    """With a comment as a blank first line, indented as the code below it.

    IPython drops blank lines at the start, and would count from there."""
    lines = text.split("\n")
    first = first_line(lines)
    code = lines[first].lstrip()
    if first > 0 and not code.startswith("%%"):
        lines[0] = lines[first][: len(lines[first]) - len(code)] + "#"
    return "\n".join(lines)
