"""Call something in a thread."""
from __future__ import annotations

import threading


def in_background(act):
    """Call something in a thread; return a function that waits for what it returned; its ``answers`` are those by now."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(act()), daemon=True)
    thread.start()

    def answer():
        thread.join(10)
        assert answers, "it has not returned"
        return answers[0]

    answer.answers = answers
    return answer
