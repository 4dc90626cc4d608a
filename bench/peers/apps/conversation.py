"""How a peer's program talks with the bench: one JSON object a line, a request in, an answer out.

Owns: the pipe. Runs in the peers' environments: standard library only. Ends when the bench closes the pipe.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Request = dict[str, Any]
Answer = dict[str, Any]


def requests() -> Iterator[tuple[Request, Callable[[Answer], None]]]:
    """Requests as they come, each with what answers it. What the program prints goes to its log."""
    out: TextIO = sys.stdout
    sys.stdout = sys.stderr

    def answer(what: Answer) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    answer({"ready": True})
    for line in sys.stdin:
        yield json.loads(line), answer


def serve(run: Callable[[Request], Answer]) -> None:
    """Answer each request with what ``run`` returns, or with the error it raises."""
    for request, answer in requests():
        try:
            result = run(request)
        except Exception:
            answer({"error": traceback.format_exc()})
        else:
            answer(result)
