"""Look for public names whose types pyright does not know, so that users' checkers would guess them.

A type may lead to services inside of the package whose attributes have no annotations; of a public name only its own count.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Classes of what calls return, which are not imported by users.
RETURNED = {"Agent", "KeyChange", "Watch"}

#: Names that get a base class from Celery, which has no types.
OF_CELERY = {"celery_memsync.exceptions.TaskCancelled"}

#: What pyright says of a type that is known as far as it was written here.
OF_ANOTHER = "is partially unknown"

#: What it says of an attribute that is assigned without an annotation.
UNANNOTATED = "Type is missing type annotation"


def found_by_pyright() -> list[dict]:
    """Return what pyright has found of each symbol of the package."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--verifytypes", "celery_memsync",
               "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return json.loads(done.stdout)["typeCompleteness"]["symbols"]


def reasons_of(symbol: dict) -> list[str]:
    """Return why the type of a symbol is not known, but for types of other names, and methods made by a typed function."""
    known = symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]
    passed = (OF_ANOTHER, UNANNOTATED) if symbol["category"] == "function" else (OF_ANOTHER,)
    return [] if known else [
        one["message"] for one in symbol["diagnostics"] if not any(text in one["message"] for text in passed)]


def main() -> int:
    """Return 1 if there are any."""
    sys.path.insert(0, str(ROOT))
    from celery_memsync import __all__ as names

    public = {*names, *RETURNED}
    symbols = [one for one in found_by_pyright() if public & set(one["name"].split("."))]
    wrong = [f"{one['name']}: {reason.splitlines()[0]}" for one in symbols for reason in reasons_of(one)
             if one["name"] not in OF_CELERY]
    print("\n".join(wrong) or f"pyright: the types of {len(symbols)} public names are known")
    return bool(wrong) or not symbols


if __name__ == "__main__":
    sys.exit(main())
