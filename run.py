"""What one run produced, in bounded memory: the value `Run`. Pure."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Self

from config import MAX_REPLY_IMAGE_BYTES, Config
from pictures import BadPicture, Picture

# A run can fail in more ways than anybody reads notes.
_MAX_NOTES = 20


class Clipped:
    """Text whose middle is dropped as it grows: `limit` characters of it are kept."""

    def __init__(self, limit: int, text: str = "") -> None:
        self.head = ""  # all of the text, until something is missing
        self.tail = ""
        self.missing = 0  # characters between head and tail
        self._limit = limit
        self.add(text)

    @property
    def kept(self) -> int:
        """How many characters there are."""
        return len(self.head) + len(self.tail)

    def add(self, text: str) -> None:
        if self.missing:
            self.tail += text
        else:
            self.head += text
        self.cut(self._limit)

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

    def map(self, change: Callable[[str], str]) -> "Clipped":
        """A copy in which head and tail are changed."""
        copy = Clipped(self._limit)
        copy.head = change(self.head)
        copy.tail = change(self.tail)
        copy.missing = self.missing
        return copy

    def text(self) -> str:
        if not self.missing:
            return self.head
        return f"{self.head}\n[… {self.missing:,} characters cut …]\n{self.tail}"


@dataclass
class Run:
    """What came of one run; `problem` says in our words why it was not a normal one."""

    stdout: Clipped
    stderr: Clipped
    values: Clipped
    outcome: Literal["ok", "error", "timeout", "unavailable"] = "unavailable"
    error_name: str = ""
    error_value: str = ""
    traceback: str = ""
    problem: str = ""
    pictures: list[Picture] = field(default_factory=list)
    # How many times (what, why) was not shown.
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    started_at: float = field(default_factory=monotonic)
    durations_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, max_output_chars: int) -> Self:
        return cls(
            Clipped(max_output_chars),
            Clipped(max_output_chars),
            Clipped(max_output_chars),
        )

    def add_value(self, text: str) -> None:
        """Add what the code showed as a result, each on a line of its own."""
        separator = "\n" if self.values.head else ""
        self.values.add(separator + text)

    def keep(self, picture: Picture, config: Config) -> None:
        """Keep a picture, once, within the limits. Raises BadPicture."""
        if picture in self.pictures:
            return
        if len(self.pictures) >= config.max_images:
            raise BadPicture(f"a reply holds at most {config.max_images} pictures")
        size = len(picture.data)
        limit = config.max_image_bytes
        if size > limit:
            raise BadPicture(f"{size:,} bytes (the limit is {limit:,})")
        limit = MAX_REPLY_IMAGE_BYTES
        if size + self.picture_bytes > limit:
            raise BadPicture(f"a reply holds at most {limit:,} bytes of pictures")
        self.pictures.append(picture)

    @property
    def picture_bytes(self) -> int:
        return sum(len(picture.data) for picture in self.pictures)

    def leave_out(self, what: str, why: str) -> None:
        """Count something that is not shown, for a note."""
        note = (what, why)
        if note not in self.left_out and len(self.left_out) >= _MAX_NOTES:
            note = ("output", "various reasons")
        self.left_out[note] += 1
