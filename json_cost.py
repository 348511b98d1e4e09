"""What a JSON text costs to parse, known before it is parsed. Pure."""

# Quotes, separators and brackets: a JSON of so many takes 50 ms, in which no other
# thread runs, and 30 MB.
_MAX_TOKENS = 200_000


def is_costly(text: bytes | bytearray) -> bool:
    """Whether UTF-8 JSON has too many tokens; a string is one, however long."""
    bare = bytes(text).replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = bare.count(b'"')
    if quotes > _MAX_TOKENS:
        return True
    outside_strings = b"".join(bare.split(b'"')[::2])
    separators = sum(map(outside_strings.count, (b",", b"[", b"{")))
    return quotes + separators > _MAX_TOKENS
