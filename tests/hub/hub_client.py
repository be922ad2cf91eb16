"""Call functions in another process, whose environment points the real `huggingface_hub` client at the loopback Hub.

The client reads its endpoint when it is imported, so it cannot be tested in the process of the tests. One process
serves many calls: a function is sent as source, so it imports what it needs itself; arguments and result are JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any


class RemoteError(Exception):
    """An exception in the other process: `name` of its class, HTTP `status` if it has one, the message."""

    def __init__(self, name: str, status: int | None, message: str, trace: str) -> None:
        super().__init__(f"{name} ({status}): {message}\n{trace}")
        self.name, self.status, self.message = name, status, message


class HubClient:
    """The other process. `close` ends it.

    Args:
        environment: Its whole environment, from `LoopbackHub.env`.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function(*arguments)` returns there.

        Raises:
            RemoteError: If it raises.
        """
        source = textwrap.dedent(inspect.getsource(function))
        message = {"source": source, "name": function.__name__, "arguments": arguments}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process ended with {self.process.wait()}.")
        reply = json.loads(answer)
        if "error" in reply:
            raise RemoteError(**reply["error"])
        return reply["result"]

    def error(self, function: Callable[..., Any], *arguments: Any) -> RemoteError:
        """Return the exception that `function(*arguments)` raises there."""
        try:
            result = self.call(function, *arguments)
        except RemoteError as error:
            return error
        raise AssertionError(f"{function.__name__} raised nothing and returned {result!r}")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def _serve() -> None:
    """Answer calls until stdin ends; what the functions print goes to stderr."""
    for line in sys.stdin:
        call = json.loads(line)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                names: dict[str, Any] = {}
                exec("from __future__ import annotations\n" + call["source"], names)
                reply = {"result": names[call["name"]](*call["arguments"])}
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            told = {"name": type(error).__name__, "status": status, "message": str(error)}
            reply = {"error": told | {"trace": traceback.format_exc()}}
        print(json.dumps(reply, default=str), flush=True)


if __name__ == "__main__":
    _serve()
