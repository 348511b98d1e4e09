"""The value `Run`: all that one run produced, in bounded memory. Pure."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pictures.picture import (
    BadPicture,
    Picture,
    decode,
    is_whole,
    may_be_figure,
    picture_from,
    size_in_pixels,
)
from texts.clipped import Clipped, Printed
from texts.encoded import begins_picture
from texts.results import is_drawing, is_lost, value_text
from texts.tracebacks import split_notes

# A run can lead to any number of different notes; nobody reads more than this.
_MAX_NOTES = 20
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


@dataclass
class Run:
    """The result of a run; `problem` says in our words why it was not a normal one."""

    limits: Limits
    stdout: Clipped
    stderr: Clipped
    values: Clipped
    drawings: Clipped  # values that say nothing beside a picture
    # Something was printed after a value: since then stdout has the values, too, each
    # in its place.
    is_mixed: bool = False
    _is_at_line_start: bool = True  # in stdout
    outcome: Literal["ok", "error", "timeout", "unavailable", "cancelled", "budget"] = (
        "unavailable"
    )
    error_name: str = ""
    error_value: str = ""
    traceback: str = ""
    problem: str = ""
    began_anew: bool = False  # the kernel had ended, with what earlier runs had made
    note: str = ""  # about the sandbox, for the caller
    pictures: list[Picture] = field(default_factory=list)
    _has_shown_picture: bool = False  # one that came as a result
    # How often something was not shown, by (what, why).
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    durations_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, limits: Limits) -> Self:
        nothing = Clipped(limits.output_chars)
        run = cls(limits, nothing, nothing, nothing, drawings=nothing)
        run.stdout = run._printed()
        run.stderr = run._printed()
        run.values = run._printed()
        return run

    def _printed(self) -> Printed:
        limits = self.limits
        return Printed(limits.output_chars, self._stand_in_for, limits.image_bytes)

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
                picture = picture_from(data)
                self._forget_printed_figures()
                self.keep(picture)
                return True
            except BadPicture as exc:
                reason = reason or str(exc)
        if reason:
            self.leave_out("picture", reason)
        return bool(reason)

    def _forget_printed_figures(self) -> None:
        """Once a picture has come as a result, those that were printed may be it."""
        if not self._has_shown_picture:
            self._has_shown_picture = True
            self.pictures = [one for one in self.pictures if not may_be_figure(one)]

    def _stand_in_for(self, kind: str, word: str) -> str:
        """What is shown in place of a long word; a picture that it holds is shown."""
        size = f"{len(word):,} characters of {kind}"
        if not begins_picture(word):
            return f"[{size}]"
        try:
            data = bytes.fromhex(word) if kind == "hex" else decode("png", word)
            picture = picture_from(data)
            if not is_whole(picture):
                return f"[{size}, the start of a picture]"
            # The kernel shows each figure that was saved, also those saved to memory.
            if not (self._has_shown_picture and may_be_figure(picture)):
                self.keep(picture)
        except BadPicture as exc:
            self.leave_out("picture", str(exc))
            return f"[{size}]"
        width, height = size_in_pixels(picture)
        return f"[{size}: a picture of {width} x {height} pixels]"

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

    def add_printed(self, stream: str, text: str) -> None:
        """Add a text that came on "stdout" or "stderr"."""
        if stream == "stderr":
            self.stderr.add(text)
            return
        if not self.is_mixed and self.values.kept and text.strip():
            self._mix()
        self.stdout.add(text)
        if text:
            self._is_at_line_start = text.endswith("\n")

    def _mix(self) -> None:
        self.is_mixed = True
        if not self._is_at_line_start:
            self.stdout.add("\n")
        self.stdout.add_clipped(self.values)
        self.stdout.add("\n")
        self.values = self._printed()

    def add_value(self, text: str) -> None:
        """Add the text of a result, on a line of its own."""
        if is_drawing(text):
            separator = "\n" if self.drawings.kept else ""
            self.drawings.add(separator + text)
        elif self.is_mixed:
            separator = "" if self._is_at_line_start else "\n"
            self.stdout.add(f"{separator}{text}\n")
            self._is_at_line_start = True
        else:
            separator = "\n" if self.values.kept else ""
            self.values.add(separator + text)

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
