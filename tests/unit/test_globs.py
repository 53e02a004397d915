"""Globs: what matches here is what matches in Redis, and no pattern costs more than it does there."""
from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_memsync import InvalidKey
from celery_memsync.globs import matcher
from tests.support.paths import ROOT
from tests.support.stress import stressed

LETTERS = "ab-^]/é\U0001f40d"
SPECIAL = "*?[]^-\\"

texts = st.text(LETTERS + "*?[\\", min_size=1, max_size=6)
patterns = st.one_of(
    st.text(LETTERS + SPECIAL, min_size=1, max_size=8),
    st.lists(st.sampled_from([
        "*", "?", "a", "b", "/", "-", "é", "\\a", "\\*", "\\\\", "[ab]", "[^a]", "[^ab]", "[a-b]", "[b-a]", "[é]",
        "[^é]", "[\\]]", "[\\-a]", "[a\\-b]", "[a-]b]", "[-a]", "[a^]", "[^^]", "[]a]", "[^]", "[]", "[a-\\]",
        "[\\a-b]", "[*?]", "[/]",
    ]), min_size=1, max_size=5).map("".join),
)

#: Patterns that people write, with texts that match and texts that do not.
KNOWN = [
    ("tasks/*/state", ["tasks/t1/state", "tasks//state", "tasks/a/b/state"], ["tasks/state", "xtasks/t1/state"]),
    ("tasks/t?", ["tasks/t1", "tasks/t/"], ["tasks/t", "tasks/t12", "tasks/té"]),
    ("h??llo", ["héllo", "haallo"], ["hallo"]),
    ("[abc]", ["a", "c"], ["d", "", "ab"]),
    ("[^a]", ["b", "^"], ["a"]),
    ("[!a]", ["!", "a"], ["b"]),
    ("[a-c]x", ["ax", "bx"], ["dx", "-x"]),
    ("[c-a]x", ["ax", "bx"], ["dx", "-x"]),
    ("\\*", ["*"], ["a", "\\*"]),
    ("a\\", ["a\\"], ["a"]),
    ("[\\]]", ["]"], ["\\"]),
    ("a]b", ["a]b"], ["ab"]),
    ("**", ["a", "a/b"], []),
    ("A", ["A"], ["a"]),
    (".+$", [".+$"], ["a", "aa"]),
    ("a|b", ["a|b"], ["a", "b"]),
    ("{a,b}", ["{a,b}"], ["a", "b"]),
    ("(?i)a", ["(xi)a"], ["A"]),
]


@pytest.fixture
def matches_in_redis(redis):
    """Return a function that returns which texts match a pattern according to Redis."""

    def found(pattern, texts):
        redis.flushdb()
        redis.mset(dict.fromkeys(texts, 1))
        return {text for text in texts if text.encode() in set(redis.keys(pattern))}

    return found


@pytest.mark.slow
@settings(max_examples=stressed(1500, 500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=patterns, texts=st.lists(texts, min_size=1, max_size=8, unique=True))
@example(pattern="?", texts=["a", "é"])
@example(pattern="?[[-é]", texts=["??", "aa", "a[", "aé", "a-", "ab"])
@example(pattern="[a-é]*", texts=["a", "b", "é", "-", "^"])
@example(pattern="[é]", texts=["é"])
@example(pattern="[a-]b]", texts=["b", "ab", "-b]", "ab]", "^b"])
@example(pattern="[\\a-b]", texts=["a", "b", "-"])
@example(pattern="[^]a", texts=["a", "ba", "]a"])
def test_a_pattern_matches_here_what_it_matches_in_redis(matches_in_redis, pattern, texts):
    try:
        matches = matcher(pattern)
    except InvalidKey:
        assert "[" in pattern
        return

    here = {text for text in texts if matches(text)}

    assert here == matches_in_redis(pattern, texts)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_an_escaped_text_matches_itself_only(matches_in_redis, text):
    pattern = "".join("\\" + letter for letter in text)
    others = {text + "a", "a" + text, text.replace("a", "b") + "/"}

    here = {one for one in [text, *others] if matcher(pattern)(one)}

    assert here == {text} == matches_in_redis(pattern, [text, *others])


@pytest.mark.parametrize("pattern, matching, others", KNOWN, ids=[pattern for pattern, *_ in KNOWN])
def test_a_pattern_that_people_write_matches(matches_in_redis, pattern, matching, others):
    texts = [text for text in matching + others if text]

    here = [text for text in matching + others if matcher(pattern)(text)]

    assert here == matching
    assert matches_in_redis(pattern, texts) == set(matching)


@pytest.mark.parametrize("pattern", ["[", "[a", "a[b-", "[^", "[]a[", "*[", "[\\]"])
def test_a_bracket_that_is_not_closed_is_refused(pattern):
    with pytest.raises(InvalidKey, match=r"'\['"):
        matcher(pattern)


@pytest.mark.parametrize("pattern, text", [
    ("*a" * 12 + "b", "a" * 500),
    ("*" * 200 + "b", "a" * 500),
    ("*-" * 20 + "/state", "tasks/" + "0-" * 200),
    ("*?" * 30 + "b", "a" * 500),
    ("*[ab]" * 20 + "c", "ab" * 250),
])
def test_a_pattern_of_many_stars_does_not_take_ages(pattern, text):
    program = (
        "import sys; from celery_memsync.globs import matcher; pattern, text = sys.argv[1:];"
        "print([bool(matcher(pattern)(one)) for one in (text, text + 'b', text + 'c', text + '/state')])")

    command = [sys.executable, "-c", program, pattern, text]
    answer = subprocess.run(command, cwd=ROOT, timeout=15, stdout=subprocess.PIPE, check=True)

    assert answer.stdout.count(b"True") == 1


@pytest.mark.parametrize("key", ["ab", "é", "a-b", "a^", "tasks/é/state", "tasks/ab/agents/é"])
@pytest.mark.parametrize("pattern", [
    "?", "??", "[é]", "[^a]", "[^a]?", "[a-]b]", "[\\a-z]?", "a[-^]*", "*/?/*", "*/??/*", "*[é]*", "*é*",
    "tasks/[^x]*/agents/*",
])
def test_a_search_finds_before_it_is_written_what_it_finds_after(memsync, pattern, key):
    memsync.write(key, {})

    before = memsync.search(pattern)
    memsync.force_sync()

    assert memsync.search(pattern) == before


@pytest.mark.parametrize("pattern", ["?", "??", "[é]", "[a-]b]", "*[^a]", "a[-^]*"])
def test_subscription_receives_what_a_search_finds(make_memsync, pattern):
    memsync = make_memsync(batch_interval=60.0)
    keys = ["ab", "é", "a-b", "a^", "a", "b"]
    with memsync.watch(pattern, timeout=0.3) as changes:
        for key in [*keys, "tasks/t1/é"]:
            memsync.write(key, 1)
        memsync.force_sync()

        received = {change.key for change in changes}

    assert received == set(memsync.search(pattern))
