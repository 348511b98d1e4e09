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

    def __init__(self, limit: int) -> None:
        self.head = ""
        self.tail = ""
        self.missing = 0  # characters between head and tail
        self._half = limit // 2

    @property
    def kept(self) -> int:
        """How many characters there are."""
        return len(self.head) + len(self.tail)

    def add(self, text: str) -> None:
        if not self.tail:
            space = max(0, self._half - len(self.head))
            self.head += text[:space]
            text = text[space:]
        self.tail += text
        surplus = len(self.tail) - self._half
        if surplus > 0:
            self.tail = self.tail[surplus:]
            self.missing += surplus

    def cut(self, limit: int) -> None:
        """Keep at most `limit` characters from now on."""
        surplus = self.kept - limit
        if surplus <= 0:
            return
        if not self.missing:  # head and tail are one text, cut wherever it grew
            self.head += self.tail
            self.tail = self.head
        half = limit // 2
        self.head = self.head[:half]
        self.tail = self.tail[len(self.tail) - half :]
        self.missing += surplus + limit % 2

    def map(self, change: Callable[[str], str]) -> "Clipped":
        """A copy with its text changed; in one piece when nothing is missing."""
        copy = Clipped(2 * self._half)
        copy.missing = self.missing
        if self.missing:
            copy.head = change(self.head)
            copy.tail = change(self.tail)
        else:
            copy.head = change(self.head + self.tail)
        return copy

    def text(self) -> str:
        if not self.missing:
            return self.head + self.tail
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
            stdout=Clipped(max_output_chars),
            stderr=Clipped(max_output_chars),
            values=Clipped(max_output_chars),
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
        if size > config.max_image_bytes:
            limit = f"the limit is {config.max_image_bytes:,}"
            raise BadPicture(f"{size:,} bytes ({limit})")
        if size + sum(len(one.data) for one in self.pictures) > MAX_REPLY_IMAGE_BYTES:
            limit = f"{MAX_REPLY_IMAGE_BYTES:,} bytes"
            raise BadPicture(f"a reply holds at most {limit} of pictures")
        self.pictures.append(picture)

    def leave_out(self, what: str, why: str) -> None:
        """Count something that is not shown, for a note."""
        note = (what, why)
        if note not in self.left_out and len(self.left_out) >= _MAX_NOTES:
            note = ("output", "various reasons")
        self.left_out[note] += 1
