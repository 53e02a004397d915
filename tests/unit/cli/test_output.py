"""What commands print is safe for a terminal, aligned, and valid JSON."""
from __future__ import annotations

import json
import math
import sys
import unicodedata

import click
import pytest
from celery.bin.base import CLIContext
from celery.exceptions import CeleryCommandException
from click.testing import CliRunner

from celery_memsync.cli.output import (
    fail,
    padded,
    print_error,
    print_facts,
    print_json,
    print_line,
    print_table,
    safe,
    shorten,
    width_of,
)

UNSAFE = "\x1b[31m\r\n\x07\x7f\x9b\u202e\u2066\u200b\ud800"


@pytest.fixture
def printed():
    """Returns what a function of a context prints, with or without colours."""
    def run(function, color=False):
        command = click.Command("command", callback=click.pass_context(function))
        context = CLIContext(app=object(), no_color=not color, workdir=None)
        return CliRunner().invoke(command, obj=context, color=color, catch_exceptions=False).output

    return run


def test_safe_text_has_no_character_of_an_unsafe_category():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))

    shown = safe(everything)

    assert len(shown) == len(everything)
    unsafe = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {unicodedata.category(one) for one in shown} & unsafe == set()
    assert not set(shown) & set("\u115f\u3164\uffa0\u034f\U000e0100")


@pytest.mark.parametrize("text", [
    "", "plain [text]", "é", "e\u0301", "日本語", "한글", "नमस्ते", "🎉", "❤\ufe0f", "👍🏽"])
def test_safe_keeps_letters_marks_and_emoji(text):
    assert safe(text) == text


@pytest.mark.parametrize("given, shown", [
    (UNSAFE, "?[31m" + "?" * 9), ("a\tb", "a?b"), ("a\u2028b", "a?b"), (None, "None")])
def test_safe_replaces_each_unsafe_character(given, shown):
    assert safe(given) == shown


@pytest.mark.parametrize("text, limit, shown", [
    ("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc..."), ("x" * 201, 200, "x" * 197 + "...")])
def test_shorten_keeps_a_text_within_its_limit(text, limit, shown):
    assert shorten(text, limit) == shown


@pytest.mark.parametrize("text, width", [
    ("abc", 3), ("日本", 4), ("e\u0301", 1), ("🎉", 2), ("", 0)])
def test_width_counts_columns_of_a_terminal(text, width):
    assert width_of(text) == width
    assert width_of(padded(text, 9)) == 9


def test_line_is_safe_before_it_is_styled(printed):
    parts = [(UNSAFE, "red"), " ", ("b", "bold"), " c  "]

    shown = printed(lambda ctx: print_line(ctx, *parts), color=True)

    assert shown == f"\x1b[31m{safe(UNSAFE)}\x1b[0m \x1b[1mb\x1b[0m c\n"


def test_error_is_safe_and_on_one_line(printed):
    shown = printed(lambda ctx: print_error(ctx, UNSAFE))

    assert shown == safe(UNSAFE) + "\n"


def test_table_aligns_columns_of_unsafe_and_wide_cells(printed):
    rows = [["日本", "x"], [UNSAFE, "y"], ["e\u0301", 5], ["x" * 300, ""]]

    lines = printed(lambda ctx: print_table(ctx, ["NAME", "VALUE"], rows)).splitlines()

    begins = [width_of(line[:line.rindex(last)]) for line, last in zip(lines, ["VALUE", *"xy5"])]
    assert begins == [202] * 4
    assert lines[4] == "x" * 197 + "..."


def test_table_colours_a_status_and_its_titles_only(printed):
    rows = [["t1", "FAILURE"], ["FAILURE", "\x1b[1m"]]

    shown = printed(lambda ctx: print_table(ctx, ["ID", "STATUS"], rows, colour=1), color=True)

    assert shown.splitlines() == [
        "\x1b[1mID     \x1b[0m  \x1b[1mSTATUS\x1b[0m",
        "t1       \x1b[31mFAILURE\x1b[0m",
        "FAILURE  ?[1m"]


def test_facts_are_safe_and_aligned(printed):
    shown = printed(lambda ctx: print_facts(ctx, [("日本", UNSAFE), ("name\n", 5)]))

    assert shown.splitlines() == [f"日本   {safe(UNSAFE)}", "name?  5"]


@pytest.mark.parametrize("data, read", [
    (math.nan, None),
    ({"a": [math.inf, -math.inf, 1.5, (math.nan,)]}, {"a": [None, None, 1.5, [None]]}),
    ({UNSAFE: UNSAFE}, {UNSAFE: UNSAFE}), ([10 ** 400, -1e300, True], [10 ** 400, -1e300, True]),
])
def test_json_is_one_line_of_ascii_without_nan(printed, data, read):
    shown = printed(lambda ctx: print_json(ctx, data))

    assert shown.isascii() and shown[:-1].isprintable()
    assert json.loads(shown, parse_constant=pytest.fail) == read


def test_fail_raises_a_safe_error_with_its_code():
    with pytest.raises(CeleryCommandException) as caught:
        fail(f"no task {UNSAFE}", 69)

    assert caught.value.message == f"no task {safe(UNSAFE)}"
    assert caught.value.exit_code == 69
