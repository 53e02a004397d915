"""Raise an exception at a bytecode, as a handler of a signal may."""
from __future__ import annotations

import dis
import sys


class Limit(Exception):
    """What a signal handler raises."""


def strike(act, at, *modules):
    """Call ``act``; raise at the bytecode of some modules that has a number, None: at none; return how many there were."""
    files, count = {module.__file__ for module in modules}, 0

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti not in _safe_offsets(frame.f_code):
            count += 1
            if count == at:
                raise Limit
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Limit:
        pass
    finally:
        sys.settrace(before)
    return count


_SAFE = {}


def _safe_offsets(code):
    """Return where no signal is handled.

    CPython looks for one at the end of a call, of a jump back and of a function's begin.  Its exception belongs to that
    instruction, so where the next is in another block the trace, which strikes before the next, would be wrong.
    """
    if code not in _SAFE:
        before, safe = None, set()
        blocks = [(one.start, one.end) for one in dis._parse_exception_table(code)]
        for one in dis.get_instructions(code):
            looks = one.opname in ("RESUME", "JUMP_BACKWARD") or before is not None and (
                before.opname.startswith("CALL") or before.opname in ("RESUME", "JUMP_BACKWARD"))
            if not looks or before is not None and any(
                (start <= one.offset < end) != (start <= before.offset < end) for start, end in blocks
            ):
                safe.add(one.offset)
            if one.opname != "CACHE":
                before = one
        _SAFE[code] = safe
    return _SAFE[code]
