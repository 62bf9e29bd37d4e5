"""Files broken in every way that chance finds: each case is a function of its kind and its number."""

import copy
import re
from random import Random

SEED = 2021

# Cases of each kind; a case is made again by its number alone.
CASES = {
    "image": 1000,
    "label": 200,
    "xml": 500,
    "instances": 500,
    "coco_ap": 400,
    "list": 700,
    "data check": 160,
    "safetensors": 300,
    "torch": 500,
    "pickle": 300,
    "detections": 600,
}

NUMBERS = [
    "-1", "0", "1e999", "-1e400", "NaN", "-Infinity", "1" * 400, "9" * 5000, "4294967296", "2147483648",
    "9223372036854775808", "1e308", "1e-320", "0x10", "1_0", "+5", "\u0663", "", "null", "true",
]  # fmt: skip
NAMES = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "a\0b", "a\nb", "\x1b[2J", "x" * 5000,
    "a/" * 600, "\ud800", "\udcff", "é" * 300, "", " ", ".", "..", "$\\frac{$", "%s%n", "a,b=c", "\u202e",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1.5, 2**31, 2**32, 2**63, 2**64, 10**400, -(10**400), 1e308, float("nan"),
    float("inf"), "", [], {}, [[]], [None], {"a": 1}, [[[[[[[[1]]]]]]]], [1e308, 1e308, 1e308, 1e308],
    *NAMES, *NUMBERS[:12],
]  # fmt: skip

_BYTES = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]
_INTEGERS = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def dice(kind: str, number: int) -> Random:
    """The chance of a case."""
    return Random(f"{SEED}/{kind}/{number}")


def mutated(
    content: bytes, random: Random, other: bytes = b"", ends: int = 4096, *, gentle: bool = False
) -> bytes:
    """The content after some blows; most fall near its beginning or end, where its structure is.

    Args:
        content: of a good file.
        random: the case's.
        other: another good file, to take parts of.
        ends: how many bytes are near.
        gentle: one blow, which changes a bit or a word.
    """
    broken = bytearray(content)
    if gentle:
        random.choice((_flip, _token))(broken, random, other or content, ends)
        return bytes(broken)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        random.choice(_BLOWS)(broken, random, other or content, ends)
    return bytes(broken)


def _place(size: int, random: Random, ends: int) -> int:
    if random.random() < 0.2 or size <= ends:
        return random.randrange(size + 1)
    near = random.randrange(ends)
    return near if random.random() < 0.6 else size - near


def _flip(broken, random, other, ends):
    if broken:
        broken[min(_place(len(broken), random, ends), len(broken) - 1)] ^= 1 << random.randrange(8)


def _byte(broken, random, other, ends):
    if broken:
        broken[min(_place(len(broken), random, ends), len(broken) - 1)] = random.choice(_BYTES)


def _integer(broken, random, other, ends):
    width, order = random.choice((2, 4, 8)), random.choice(("little", "big"))
    at = _place(len(broken), random, ends)
    broken[at : at + width] = (random.choice(_INTEGERS) % 256**width).to_bytes(width, order)


def _cut(broken, random, other, ends):
    del broken[_place(len(broken), random, ends) :]


def _leave_out(broken, random, other, ends):
    at = _place(len(broken), random, ends)
    del broken[at : at + random.choice((1, 2, 8, 100))]


def _repeat(broken, random, other, ends):
    at, size = _place(len(broken), random, ends), random.choice((1, 4, 30, 300))
    broken[at:at] = broken[at : at + size] * random.choice((1, 2, 50))


def _insert(broken, random, other, ends):
    at = _place(len(broken), random, ends)
    broken[at:at] = random.randbytes(random.choice((1, 4, 50)))


def _splice(broken, random, other, ends):
    here, there = (_place(len(one), random, ends) for one in (broken, other))
    size = random.choice((4, 50, 500))
    broken[here : here + size] = other[there : there + size]


def _token(broken, random, other, ends):
    """Another number, word or quoted text, of those that make trouble."""
    at = _place(len(broken), random, ends)
    window = bytes(broken[at : at + 400])
    tokens = list(re.finditer(rb'"[^"\n]*"|-?\d[\d.eE+-]*|[\w./-]+', window))
    if tokens:
        token = random.choice(tokens)
        text = random.choice(NUMBERS if token[0][:1] in b"-0123456789" else NAMES)
        new = text.encode("utf-8", "surrogatepass")
        new = b'"' + new + b'"' if token[0].startswith(b'"') else new
        broken[at + token.start() : at + token.end()] = new


_BLOWS = [_flip, _byte, _integer, _cut, _leave_out, _repeat, _insert, _splice, _token, _token]


def mutated_tree(tree, random: Random):
    """What a JSON file says, after one to three of its values are exchanged, left out or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return random.choice(VALUES)
        inside, key = random.choice(places)
        blow = random.random()
        if blow < 0.6:
            inside[key] = copy.deepcopy(random.choice(VALUES))
        elif blow < 0.75:
            del inside[key]
        elif blow < 0.9:
            there, other = random.choice(places)
            inside[key] = copy.deepcopy(there[other])
        elif isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
    return tree


def _places(tree):
    """Every list or dict with every key, the lower the rarer: a file has few lists and many numbers."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield tree, key
        yield from _places(value)
