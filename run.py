"""What one run produced, in bounded memory: the value `Run`. Pure."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Literal, Self

from config import MAX_REPLY_IMAGE_BYTES, Config
from pictures.picture import BadPicture, Picture
from texts.folding import fold_always
from texts.results import is_drawing
from texts.saved_figures import is_saved_copy

# A run can fail in more ways than anybody reads notes.
_MAX_NOTES = 20


@dataclass
class Clipped:
    """Text whose middle is dropped as it grows: `limit` characters of it are kept."""

    limit: int
    head: str = ""  # all of the text, until something is missing
    tail: str = ""
    missing: int = 0  # characters between head and tail

    @property
    def kept(self) -> int:
        """How many characters there are."""
        return len(self.head) + len(self.tail)

    def add(self, text: str) -> None:
        if self.missing:
            self.tail += text
        else:
            self.head += text
        self.cut(self.limit)

    def cut(self, limit: int) -> None:
        """Drop the middle of what is more than `limit` characters."""
        kept = self.kept
        if kept <= limit:
            return
        half = limit // 2
        end = self.tail if self.missing else self.head
        self.head = self.head[:half]
        self.tail = end[len(end) - half :]
        self.missing += kept - self.kept

    def map(self, change: Callable[[str], str]) -> Self:
        """A copy in which head and tail are changed."""
        return replace(
            self,
            head=change(self.head),
            tail=change(self.tail),
        )

    def text(self) -> str:
        if not self.missing:
            return self.head
        return f"{self.head}\n[… {self.missing:,} characters cut …]\n{self.tail}"


class Printed(Clipped):
    """Folds what is added before it is cut: what goes takes no place from the rest."""

    def add(self, text: str) -> None:
        super().add(fold_always(text))


@dataclass
class Run:
    """What came of one run; `problem` says in our words why it was not a normal one."""

    stdout: Clipped
    stderr: Clipped
    values: Clipped
    drawings: Clipped  # values that say nothing beside a picture
    outcome: Literal["ok", "error", "timeout", "unavailable"] = "unavailable"
    error_name: str = ""
    error_value: str = ""
    traceback: str = ""
    problem: str = ""
    note: str = ""  # what else the caller should know of the sandbox
    pictures: list[Picture] = field(default_factory=list)
    saved_figures_are_shown: bool = False  # once more, so that a saved one is a copy
    # How many times (what, why) was not shown.
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    started_at: float = field(default_factory=monotonic)
    durations_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, max_output_chars: int) -> Self:
        return cls(
            Printed(max_output_chars),
            Printed(max_output_chars),
            Clipped(max_output_chars),
            Clipped(max_output_chars),
        )

    def add_value(self, text: str) -> None:
        """Add what the code showed as a result, each on a line of its own."""
        values = self.drawings if is_drawing(text) else self.values
        separator = "\n" if values.head else ""
        values.add(separator + text)

    def keep(self, picture: Picture, config: Config) -> None:
        """Keep a picture, once, within the limits. Raises BadPicture."""
        kept = self._without_saved_copy(picture)
        if picture in kept:
            return
        kept.append(picture)
        if len(kept) > config.max_images:
            raise BadPicture(f"a reply holds at most {config.max_images} pictures")
        size = len(picture.data)
        limit = config.max_image_bytes
        if size > limit:
            raise BadPicture(f"{size:,} bytes (the limit is {limit:,})")
        total_size = sum(len(each.data) for each in kept)
        limit = MAX_REPLY_IMAGE_BYTES
        if total_size > limit:
            raise BadPicture(f"a reply holds at most {limit:,} bytes of pictures")
        self.pictures = kept

    def _without_saved_copy(self, figure: Picture) -> list[Picture]:
        """The pictures without the latest one that is `figure`, as it was saved."""
        kept = self.pictures.copy()
        for picture in reversed(self.pictures):
            if self.saved_figures_are_shown and is_saved_copy(picture, figure):
                kept.remove(picture)
                break
        return kept

    @property
    def picture_bytes(self) -> int:
        return sum(len(picture.data) for picture in self.pictures)

    def leave_out(self, what: str, why: str) -> None:
        """Count something that is not shown, for a note."""
        note = (what, why)
        if note not in self.left_out and len(self.left_out) >= _MAX_NOTES:
            note = ("output", "various reasons")
        self.left_out[note] += 1
