"""Text in bounded memory, whatever is added to it. Pure."""

from collections.abc import Callable

from texts.encoded import BASE64_CHARACTERS, LABEL, begins_picture, replace_encoded

# Small texts are collected up to this, before they are joined to a long one.
_COLLECTED_CHARS = 64 * 1024
# The most of a long word that is kept until it ends, if it is no picture.
_WORD_CHARS = 256 * 1024


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

    def add_clipped(self, other: "Clipped") -> None:
        """Add a text of which the middle may be missing."""
        self.add(other.head)
        if other.missing:
            dropped = self.tail
            self._missing += len(dropped) + other.missing
            self._tail = ""
            self.add(other.tail)

    def map(self, change: Callable[[str], str]) -> "Clipped":
        """A copy in which head and tail are changed."""
        return Clipped(self.limit, change(self.head), change(self.tail), self.missing)

    def text(self) -> str:
        if not self.missing:
            return self.head
        return f"{self.head}\n[… {self.missing:,} characters cut …]\n{self.tail}"


class Printed(Clipped):
    """Text in which long words of base64 and hex are replaced before it is cut.

    The word at its end is kept apart, because it may go on in what is added next. One
    that is too long for that is taken in parts."""

    def __init__(
        self, limit: int, replace: Callable[[str, str], str], picture_bytes: int
    ):
        """`replace(kind, word)` returns what stands for a word; `picture_bytes` is the
        most that a picture in it may have."""
        super().__init__(limit)
        self._replace = replace
        self._picture_chars = max(picture_bytes // 3 * 4 + 4, _WORD_CHARS)
        self._word = bytearray()

    def add(self, text: str) -> None:
        before_word = text.rstrip(BASE64_CHARACTERS).removesuffix(LABEL)
        if before_word:
            word = self._take_word(len(self._word))
            self._add_replaced(word + before_word)
        self._word += text[len(before_word) :].encode()
        while len(self._word) > (longest := self._longest_word()):
            self._add_replaced(self._take_word(longest))

    def _longest_word(self) -> int:
        start = self._word[:40].decode().removeprefix(LABEL)
        return self._picture_chars if begins_picture(start) else _WORD_CHARS

    def _add_replaced(self, text: str) -> None:
        super().add(replace_encoded(text, self._replace))

    def _take_word(self, chars: int) -> str:
        word = self._word[:chars].decode()
        del self._word[:chars]
        return word

    def _join_new(self) -> None:
        if self._word:
            word = self._take_word(len(self._word))
            self._new.append(replace_encoded(word, self._replace))
        super()._join_new()
