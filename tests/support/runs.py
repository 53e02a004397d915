"""Run keys of tests: of runs that one message after the other has caused."""
from __future__ import annotations


def run_key(step, delivery, chain="chain"):
    """Return the run key of a delivery of a step of a chain of runs."""
    return f"{chain}.{step}.d{round(1000 * delivery)}"
