"""Annotations in XML that are broken, that expand, or that point elsewhere."""

import codecs
import encodings.aliases
import math
import os
import sys
from pathlib import Path

import pytest

from goodtransfer.data.voc import read_annotation

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, outcomes
from mutations import CASES, dice, mutated

NUMBERS = {"cat": 0, "dog": 1}
GOOD = b"""<?xml version="1.0" encoding="utf-8"?>
<annotation>
 <folder>VOC2007</folder><filename>000001.jpg</filename>
 <size><width>353</width><height>500</height><depth>3</depth></size>
 <object><name>dog</name><difficult>0</difficult>
  <bndbox><xmin>48</xmin><ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox></object>
 <object><name>cat</name><difficult>1</difficult>
  <bndbox><xmin>8.5</xmin><ymin>12</ymin><xmax>352</xmax><ymax>498</ymax></bndbox></object>
</annotation>
"""


@pytest.mark.slow
def test_broken_annotations(tmp_path):
    path = tmp_path / "000001.xml"

    def case(number):
        random = dice("xml", number)
        path.write_bytes(mutated(GOOD, random, gentle=number % 2 == 0))
        found = read_annotation(path, NUMBERS)
        assert min(found.width, found.height) >= 1
        for x1, y1, x2, y2 in found.boxes:
            assert 0 <= x1 < x2 <= found.width
            assert 0 <= y1 < y2 <= found.height
        assert set(found.labels) <= {0, 1}

    path.write_bytes(GOOD)
    assert read_annotation(path, NUMBERS).boxes == [(47, 239, 195, 371), (7.5, 11, 352, 498)]
    assert_clean(outcomes(case, CASES["xml"], tmp_path), CASES["xml"], least=0.03)


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(20))
BAD = {
    "a billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l20;</annotation>',
    "one long entity often": f'<!DOCTYPE a [<!ENTITY l "{"x" * 10**5}">]><annotation>'
    f"{'&l;' * 10**5}</annotation>",
    "a file as an entity": '<!DOCTYPE a [<!ENTITY e SYSTEM "file://{secret}">]><annotation>&e;</annotation>',
    "an address as an entity": '<!DOCTYPE a [<!ENTITY e SYSTEM "http://127.0.0.1:9/">]>'
    "<annotation>&e;</annotation>",
    "a DTD elsewhere": '<!DOCTYPE a SYSTEM "file://{secret}"><annotation/>',
    "an entity of a parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file://{secret}"> %p;]><annotation/>',
    "an attribute of a megabyte in every element": f'<!DOCTYPE a [<!ATTLIST o x CDATA "{"x" * 10**6}">]>'
    f"<annotation>{'<o/>' * 10**5}</annotation>",
    "elements a hundred thousand deep": "<a>" * 10**5,
    "elements a hundred thousand deep, closed": "<a>" * 10**5 + "</a>" * 10**5,
    "a name of a megabyte": f"<annotation><size><width>9</width><height>9</height></size><object>"
    f"<name>{'x' * 10**6}</name></object></annotation>",
    "a number of a megabyte": f"<annotation><size><width>{'9' * 10**6}</width></size></annotation>",
    "sides of 1e308": "<annotation><size><width>1e308</width><height>1e308</height></size></annotation>",
    "nothing": "",
    "a NUL": "<annotation>\0</annotation>",
    "a table": "<annotation><size>" + "<width>9</width>" * 10**5 + "</size></annotation>",
}


@pytest.mark.parametrize("name", BAD)
def test_annotations_made_to_harm(name, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the secret word")
    path = tmp_path / "000001.xml"
    path.write_text(BAD[name].replace("{secret}", str(secret)))

    def case(number):
        try:
            read_annotation(path, NUMBERS)
        except ValueError as error:
            if "the secret word" in str(error):
                raise AssertionError from error
            raise

    assert outcomes(case, 1, tmp_path, seconds=10, gigabytes=0.5) == ["one sentence"]


def test_an_annotation_in_every_encoding_that_python_has(tmp_path):
    """Those that are no encodings of texts, such as rot13 and zlib, among them."""
    path = tmp_path / "000001.xml"
    names = sorted(
        {*encodings.aliases.aliases.values(), "idna", "punycode", "undefined", "nonsense"}
    )
    assert len(names) > 90

    def case(number):
        text = GOOD.decode().replace("utf-8", names[number])
        try:
            path.write_bytes(codecs.encode(text, names[number]))
        except (LookupError, TypeError, ValueError):
            path.write_bytes(text.encode())
        read_annotation(path, NUMBERS)

    assert_clean(outcomes(case, len(names), tmp_path), len(names))


def test_utf16_is_read(tmp_path):
    path = tmp_path / "000001.xml"
    path.write_bytes(GOOD.decode().replace("utf-8", "utf-16").encode("utf-16"))
    assert read_annotation(path, NUMBERS).labels == [1, 0]


def test_no_file_of_an_annotation(tmp_path):
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "folder.xml").mkdir()
    (tmp_path / "large.xml").touch()
    os.truncate(tmp_path / "large.xml", 2**42)
    for name, words in (
        ("pipe", "Neither"),
        ("folder", "Is a directory"),
        ("large", "File too large"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"annotation at .*{name}.xml, .*\({words}"):
            read_annotation(tmp_path / f"{name}.xml", NUMBERS)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "0x10", "1e400"])
@pytest.mark.parametrize("tag", ["width", "xmin", "ymax", "difficult"])
def test_numbers_that_are_none(tag, text, tmp_path):
    path = tmp_path / "000001.xml"
    before, start, rest = GOOD.decode().partition(f"<{tag}>")
    path.write_text(f"{before}{start}{text}</{tag}>{rest.partition('>')[2]}")
    with pytest.raises(ValueError, match=rf"a number in <(.*/)?{tag}> of .*000001.xml, but found"):
        read_annotation(path, NUMBERS)
    assert not math.isfinite(float(text)) if text not in ("", "0x10") else True
