"""Long base64 and hex are replaced, and nothing that might be something else."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import time

import pytest

from texts.encoded import begins_picture, replace_encoded

SOURCE = random.Random(1)
DATA = SOURCE.randbytes(7_680)
IN_BASE64 = base64.b64encode(DATA).decode()
IN_HEX = DATA.hex()


def shown(text: str) -> str:
    return replace_encoded(text, lambda kind, word: f"[{len(word):,} {kind}]")


@pytest.mark.parametrize(
    ("text", "with_note"),
    [
        (IN_BASE64, "[10,240 base64]"),
        (f"{IN_BASE64}\n", "[10,240 base64]\n"),
        (f"b'{IN_BASE64}'", "b'[10,240 base64]'"),
        (json.dumps({"a": IN_BASE64, "b": 1}), '{"a": "[10,240 base64]", "b": 1}'),
        (f"<img src='data:image/png;base64,{IN_BASE64}'> ok", None),
        (f"data:application/vnd.a-b+json;base64,{'A' * 400}", None),
        (base64.b64encode(DATA[:151]).decode(), "[204 base64]"),
        (base64.b64encode(b"hello world, " * 30).decode(), "[520 base64]"),
        (f"{IN_HEX}", "[15,360 hex]"),
        (f"x={IN_HEX.upper()};", "x=[15,360 hex];"),
        (f"{IN_BASE64}\n{IN_HEX}", "[10,240 base64]\n[15,360 hex]"),
    ],
)
def test_base64_and_hex_are_replaced(text: str, with_note: str | None) -> None:
    if with_note is None:
        head, _, rest = text.partition(";base64,")
        length = len(rest.split("'")[0])
        with_note = f"{head};base64,[{length:,} base64]{rest[length:]}"
    assert shown(text) == with_note


PATH = "/data/User1/projects2/" + "/".join(f"Folder{n}/lib" for n in range(40))
LETTERS = "".join(SOURCE.choices(string.ascii_letters, k=4_000))


@pytest.mark.parametrize(
    "text",
    [
        str(2**4000),
        hex(2**4000 - 1),
        "ACGT" * 500,
        "".join(SOURCE.choices("ACGTN", k=4_000)),
        "".join(SOURCE.choices("ACDEFGHIKLMNPQRSTVWY", k=4_000)),
        "acgt0123" * 100,
        "0101101" * 400,
        "0" * 400,
        "a" * 400,
        "abcdef" * 100,
        "aB1" * 400,
        LETTERS,
        "Donaudampfschifffahrt" * 20,
        hashlib.sha512(b"x").hexdigest(),
        " ".join(hashlib.sha512(b"%d" % n).hexdigest() for n in range(50)),
        "\n".join(IN_BASE64[n : n + 64] for n in range(0, 3_200, 64)),  # a PEM file
        IN_BASE64[:200],
        IN_HEX[:200],
        PATH[: len(PATH) // 4 * 4],
        f"https://example.com{PATH}",
        "data:image/png;base64,iVBORw0KGgo=",
        f"data:text/plain,{'a' * 400}",
        f"{LETTERS[:400]}.{LETTERS[:400]}",
        "_".join(["SomeName1"] * 100),
        "=" * 400,
        "+" * 400,
        "/" * 400,
        "-" * 400,
        "1,2,3," * 200,
        "x = 1\n" * 200,
        json.dumps(list(range(500))),
    ],
)
def test_what_may_be_something_else_stays(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xd8\xff\xe0"])
def test_a_picture_is_known_by_its_start(data: bytes) -> None:
    for text in (base64.b64encode(data).decode(), data.hex(), data.hex().upper()):
        assert begins_picture(text)
    for other in (DATA, b"GIF89a", b"\x89PDF", b"%PDF"):
        assert not begins_picture(base64.b64encode(other).decode())
        assert not begins_picture(other.hex())


@pytest.mark.parametrize(
    "piece",
    [IN_BASE64[:199] + " ", IN_BASE64[:220] + "\n", ";base64,", "a", "/", "+=", "aB1/"],
)
def test_time_grows_with_the_text_only(piece: str) -> None:
    """0.1 s at most, where a square would take minutes."""
    text = piece * (2_000_000 // len(piece))
    started = time.process_time()
    shown(text)
    assert time.process_time() - started < 10
