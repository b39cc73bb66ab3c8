"""The program that the raylet starts in place of Python: it asks the fork server to fork the worker process. It imports
only the standard library, and little of it, because every worker waits for it.

Arguments: the address of the server's Unix socket, the Python to run where the server does not answer, and the
arguments that Ray gives to Python.
"""

import json
import os
import socket
import sys


def main(address: str, python: str, *arguments: str) -> None:
    worker = find_worker(arguments, python)
    if worker is not None:
        request = {"arguments": worker[0], "environment": {**os.environ, **worker[1]}, "directory": os.getcwd()}
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(address)
                content = json.dumps(request).encode() + b"\n"
                sent = socket.send_fds(connection, [content], [0, 1, 2])
                connection.sendall(content[sent:])
                if connection.recv(1):
                    return
        except OSError:
            pass
    os.execv(python, [python, *arguments])


def find_worker(arguments: tuple[str, ...], python: str) -> tuple[tuple[str, ...] | list[str], dict[str, str]] | None:
    """The command line and environment variables of the worker process that Ray's setup_worker.py would start.

    None where it is not a plain Python worker: another language, or a runtime environment with more than variables.
    """
    program = os.path.basename(arguments[0]) if arguments else ""
    if program == "default_worker.py":  # no runtime environment
        return arguments, {}
    if program != "setup_worker.py":
        return None
    prefixes = {"--serialized-runtime-env-context=": "{}", "--language=": ""}
    rest: list[str] = []
    for argument in arguments[1:]:
        prefix = next((prefix for prefix in prefixes if argument.startswith(prefix)), None)
        if prefix:
            prefixes[prefix] = argument[len(prefix) :]
        else:
            rest.append(argument)
    context = json.loads(prefixes["--serialized-runtime-env-context="])
    variables = context.pop("env_vars", None) or {}
    if (
        prefixes["--language="] != "PYTHON"
        or context.pop("py_executable", None) not in (None, python)
        or any(context.values())
    ):
        return None
    if any("$" in value for value in variables.values()):  # Ray would expand references to other variables
        return None
    return rest, variables


if __name__ == "__main__":
    main(*sys.argv[1:])
