"""The value `Run`: all that one run produced, in bounded memory. Pure."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pictures.picture import BadPicture, Picture, decode, picture_from
from texts.folding import fold_always
from texts.results import is_drawing, is_lost, value_text
from texts.tracebacks import split_notes

# A run can lead to any number of different notes; nobody reads more than this.
_MAX_NOTES = 20
# Small texts are collected up to this, before they are joined to a long one.
_COLLECTED_CHARS = 64 * 1024
# The most that a reply may show. Reading 8 million line by line takes seconds.
_MAX_TRACEBACK_CHARS = 1_000_000
# Of an animation a picture is shown: in_sandbox/figures.py says so in this format.
_ANIMATION = "application/x-animation"
# The note for a figure of plotly or bokeh, an animation as HTML, a gif or a pdf.
_NO_PICTURE = "only png, jpeg and svg can be shown, so draw it with matplotlib"


@dataclass(frozen=True)
class Limits:
    """How much of a run is kept: texts only, unless pictures are allowed."""

    output_chars: int  # of each text
    images: int = 0
    image_bytes: int = 0  # of each
    all_image_bytes: int = 0


class Clipped:
    """Text whose middle is dropped as it grows: `limit` characters of it are kept.

    What is added is collected first: joining each small piece to a long text would copy
    that text each time."""

    def __init__(self, limit: int, head: str = "", tail: str = "", missing: int = 0):
        self.limit = limit
        self._head = head  # all of the text, until something is missing
        self._tail = tail
        self._missing = missing  # characters between head and tail
        self._new: list[str] = []
        self._new_chars = 0

    @property
    def head(self) -> str:
        self._join_new()
        return self._head

    @property
    def tail(self) -> str:
        self._join_new()
        return self._tail

    @property
    def missing(self) -> int:
        """How many characters between head and tail were dropped."""
        self._join_new()
        return self._missing

    @property
    def kept(self) -> int:
        """How many characters there are."""
        return len(self.head) + len(self.tail)

    def add(self, text: str) -> None:
        self._new.append(text)
        self._new_chars += len(text)
        if self._new_chars > min(self.limit, _COLLECTED_CHARS):
            self._join_new()

    def _join_new(self) -> None:
        if not self._new:
            return
        text = "".join(self._new)
        self._new.clear()
        self._new_chars = 0
        if self._missing:
            self._tail += text
        else:
            self._head += text
        self.cut(self.limit)

    def cut(self, limit: int) -> None:
        """Drop the middle of what is more than `limit` characters."""
        kept = self.kept
        if kept <= limit:
            return
        half = limit // 2
        end = self._tail if self._missing else self._head
        self._head = self._head[:half]
        self._tail = end[len(end) - half :]
        self._missing += kept - len(self._head) - len(self._tail)

    def map(self, change: Callable[[str], str]) -> "Clipped":
        """A copy in which head and tail are changed."""
        return Clipped(self.limit, change(self.head), change(self.tail), self.missing)

    def text(self) -> str:
        if not self.missing:
            return self.head
        return f"{self.head}\n[… {self.missing:,} characters cut …]\n{self.tail}"


class Printed(Clipped):
    """Text that is folded before it is cut, so that folded parts take no room in it."""

    def add(self, text: str) -> None:
        super().add(fold_always(text))


@dataclass
class Run:
    """The result of a run; `problem` says in our words why it was not a normal one."""

    limits: Limits
    stdout: Clipped
    stderr: Clipped
    values: Clipped
    drawings: Clipped  # values that say nothing beside a picture
    outcome: Literal["ok", "error", "timeout", "unavailable", "cancelled"] = (
        "unavailable"
    )
    error_name: str = ""
    error_value: str = ""
    traceback: str = ""
    problem: str = ""
    began_anew: bool = False  # the kernel had ended, with what earlier runs had made
    note: str = ""  # about the sandbox, for the caller
    pictures: list[Picture] = field(default_factory=list)
    # How often something was not shown, by (what, why).
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    durations_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, limits: Limits) -> Self:
        return cls(
            limits,
            stdout=Printed(limits.output_chars),
            stderr=Printed(limits.output_chars),
            values=Clipped(limits.output_chars),
            drawings=Clipped(limits.output_chars),
        )

    def add_result(self, formats: dict[str, Any]) -> None:
        """Add a result of the code, in E2B's formats: `text`, `png`, `html` and so on.

        https://github.com/e2b-dev/code-interpreter (template/server/api/models)"""
        if _ANIMATION in formats:
            self.leave_out("animation", "a picture of it is shown")
            return
        has_picture = self._add_picture(formats)
        text = value_text(formats, has_picture)
        if text:
            self.add_value(text)
        if not has_picture and is_lost(formats, text):
            self.leave_out("figure", _NO_PICTURE)

    def _add_picture(self, formats: dict[str, Any]) -> bool:
        """Keep a picture's first good form. Returns whether there was a picture."""
        reason = ""
        for label in ("png", "jpeg", "svg"):
            if not formats.get(label):
                continue
            try:
                data = decode(label, str(formats[label]))
                self.keep(picture_from(data))
                return True
            except BadPicture as exc:
                reason = reason or str(exc)
        if reason:
            self.leave_out("picture", reason)
        return bool(reason)

    def add_error(self, name: str, value: str, traceback: str) -> None:
        """Note the exception that ended the code."""
        text = split_notes(traceback, error=f"{name}: {value}")
        limit = self.limits.output_chars
        self.error_name = name[:200] or "Error"
        self.error_value = value[: limit // 4]
        # More than the limit is kept here, because much is removed later: E2B's lines
        # before the first cell, colours, frames.
        clipped = Clipped(min(8 * limit, _MAX_TRACEBACK_CHARS))
        clipped.add(text)
        self.traceback = clipped.text()

    def add_value(self, text: str) -> None:
        """Add the text of a result, on a line of its own."""
        values = self.drawings if is_drawing(text) else self.values
        separator = "\n" if values.head else ""
        values.add(separator + text)

    def keep(self, picture: Picture) -> None:
        """Keep a picture within the limits, the same one once. Raises BadPicture."""
        if picture in self.pictures:
            return
        kept = [*self.pictures, picture]
        if len(kept) > self.limits.images:
            raise BadPicture(f"a reply holds at most {self.limits.images} pictures")
        size = len(picture.data)
        limit = self.limits.image_bytes
        if size > limit:
            raise BadPicture(f"{size:,} bytes (the limit is {limit:,})")
        total_size = sum(len(each.data) for each in kept)
        limit = self.limits.all_image_bytes
        if total_size > limit:
            raise BadPicture(f"a reply holds at most {limit:,} bytes of pictures")
        self.pictures = kept

    @property
    def picture_bytes(self) -> int:
        return sum(len(picture.data) for picture in self.pictures)

    def leave_out(self, what: str, why: str) -> None:
        """Count something that is not shown, for a note."""
        note = (what, why)
        if note not in self.left_out and len(self.left_out) >= _MAX_NOTES:
            note = ("output", "various reasons")
        self.left_out[note] += 1
