"""Text that says nothing, or the same again, made short. Pure.

Each rule has to be sure of what it hides: a program's own text stays, but for equal
lines in a row, whose number is given. Each pattern takes linear time."""

import re

# What E2B's server and its packages say of themselves, never of the caller's code:
# - `…/pydantic/main.py:520: UserWarning: Pydantic serializer warnings:`, lines about
#   `LineChart` and others, and the line that warned: from E2B's reader of charts;
# - `…/interactiveshell.py:3756: UserWarning: To exit: use 'exit', …`, after sys.exit();
# - `WARNING: Running pip as the 'root' user can result in broken permissions …`.
_NOISE = r"""(?mx)
    ^ [^\n]*/pydantic/main\.py:\d+:[ ]UserWarning:[ ]Pydantic[ ]serializer[ ]warnings:\n
    (?: [ ]{2}PydanticSerializationUnexpectedValue\(Expected[ ]`\w*Chart`[ ]-[ ]
        [^\n]* input_type=\w*Chart\]\)\n )+
    [ ]{2}return[ ]self\.__pydantic_serializer__\.to_python\(\n?
    | ^ [^\n]*/IPython/core/interactiveshell\.py:\d+:
        [ ]UserWarning:[ ]To[ ]exit:[ ][^\n]*\n
    (?: [ ]{2}warn\("To[ ]exit:[^\n]*\n? )?
    | ^ WARNING:[ ]Running[ ]pip[ ]as[ ]the[ ]'root'[ ]user[ ]can[ ]result[ ]in[ ][^\n]*
    https://pip\.pypa\.io/warnings/venv[^\n]*\n?"""
# Without any of these there is nothing to find, in 50 MB of output either.
_SIGNS = (";base64,", "UserWarning: ", "WARNING: Running pip")
# A line 20 times and more; with less, shapes are drawn.
_PRINTED_AGAIN = r"(?m)^([^\n]*+)(?:\n\1$){19,}"
# A line of a log three times and more; a time in it may differ: `03:29:02,164`.
_TIME = r"(?:(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d:\d\d(?:[.,]\d+)?)"
_LOGGED_AGAIN = (
    rf"(?m)^(?=.)(?>([^\n]*?)(?:{_TIME}|$))([^\n]*+)"  # the first of them
    rf"(?:\n\1(?>{_TIME}?)\2$){{2,}}"
)
# `data:image/png;base64,iVBORw0K…`, from a length on at which nobody reads it.
_DATA_URI = (
    r"(data:\w{1,40}/[\w.+-]{1,80};base64,)"
    r"([A-Za-z0-9+/]{200,}={0,2})"
)

# The code in a frame of a traceback.
_ROWS = (
    r"(?:"
    r" *(?:-*> )?\d+(?: [^\n]*)?\n"  # `   3804 try:`, `-> 3805     return x`
    r"| *\(\.\.\.\)\n"  # `   (...)`
    r")*+"
)
# A frame in a library.
_LIBRARY = (
    r"^File (?:"
    r"\S*?/(?:site|dist)-packages/"  # `File /usr/…/dist-packages/pandas/io.py:3, in f`
    r"|\S*?/lib/python3[\d.]*/"  # `File /usr/lib/python3.13/json/…`
    r"|<frozen "  # `File <frozen importlib…`
    r"|\w+\.pyx:\d+, in "  # `File index.pyx:167, in pandas.…`
    r"|(?=\w+/[\w/]*\.px[id]:)"  # `File pandas/_libs/x.pxi:7`
    r")"
)
_FRAME = rf"(?>{_LIBRARY}\w[^\n]*\n{_ROWS})"
_LIBRARY_FRAMES = rf"(?m)({_FRAME})((?:{_FRAME}){{2,}})(?={_LIBRARY}\w)"
# Up to six frames that are repeated at least twice.
_FRAMES_AGAIN = rf"(?m)^((?:(?:Cell In\[|File )[^\n]*\n{_ROWS}){{1,6}}?)\1{{2,}}"


def fold_printed(text: str) -> str:
    """What a program printed."""
    text = fold_always(text)
    return re.sub(_PRINTED_AGAIN, _counted, text)


def fold_logged(text: str) -> str:
    """What came on stderr: warnings and logs."""
    text = fold_always(text)
    return re.sub(_LOGGED_AGAIN, _counted, text)


def fold_always(text: str) -> str:
    """What nobody reads, wherever it comes from."""
    if not any(sign in text for sign in _SIGNS):
        return text
    text = re.sub(_NOISE, "", text)
    return re.sub(_DATA_URI, _measured, text)


def fold_traceback(traceback: str) -> str:
    """All but the first and the last of a library's frames, and repeated ones."""
    traceback = re.sub(_LIBRARY_FRAMES, _first_only, traceback)
    return re.sub(_FRAMES_AGAIN, _first_of_equals, traceback)


def _counted(lines: re.Match[str]) -> str:
    first, *others = lines[0].split("\n")
    count = 1 + len(others)
    return f"{first} (× {count:,})"


def _measured(uri: re.Match[str]) -> str:
    return f"{uri[1]}[{len(uri[2]):,} characters of base64]"


def _first_only(frames: re.Match[str]) -> str:
    names = re.findall(rf"(?m){_LIBRARY}(\w+)", frames[2])
    libraries = sorted(set(names))
    listed = ", ".join(libraries)
    return f"{frames[1]}[{len(names):,} frames of {listed} left out]\n"


def _first_of_equals(frames: re.Match[str]) -> str:
    lines = frames[1].count("\n")
    times = len(frames[0]) // len(frames[1]) - 1
    return f"{frames[1]}[the same {lines} lines {times:,} more times]\n"
