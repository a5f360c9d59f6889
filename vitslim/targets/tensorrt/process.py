"""Running the builder in a process of its own, and turning what became of it into an answer or an error."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, UnsupportedModelError, VitslimError
from vitslim.targets.tensorrt import worker
from vitslim.targets.tensorrt.build_log import is_out_of_memory, useful_line

# -P keeps the worker's folder off the module path, where a file could stand in for one of Python's.
COMMAND: tuple[str, ...] = (sys.executable, "-P", str(worker.__file__))

_LESS_MEMORY = "build with a smaller --batch maximum or image size, or on a machine with more memory"


@dataclass(frozen=True)
class Built:
    """What the builder answered, and every line that it logged."""

    answer: dict[str, Any]
    log: list[str]


def run_worker(
    request: dict[str, Any],
    folder: Path,
    *,
    name_module: Callable[[str, str], str | None],
    command: Sequence[str] = COMMAND,
    timeout_seconds: float | None = None,
) -> Built:
    """Build what ``request`` asks for.

    Args:
        request: see ``worker.build``; where the answer lies is added.
        folder: for request, answer and log; the caller removes it.
        name_module: from a node's name and operator to the module it came from.
        command: what to start, without the request's path.
        timeout_seconds: after which the builder is ended.

    Raises:
        UnsupportedModelError: TensorRT's parser does not take the file.
        ConfigError: an option that this TensorRT does not have.
        CheckpointError: the engine could not be written.
        CheckFailedError: the builder failed, ran out of memory or time, or was taken down by a signal.
    """
    request_path, answer_path, log_path = (folder / name for name in ("request.json", "answer.json", "build.log"))
    request_path.write_text(json.dumps({**request, "answer": str(answer_path)}))
    code = _run([*command, str(request_path)], log_path, timeout_seconds)
    log = log_path.read_text(errors="replace").splitlines()
    if code is None:
        raise CheckFailedError(f"the builder was ended after {timeout_seconds:g} s; its last word: {useful_line(log)}")
    try:
        answer: Any = json.loads(answer_path.read_text())
    except (OSError, ValueError):
        answer = None
    if code != 0 or answer is None:
        raise CheckFailedError(_death(code, log))
    if "error" in answer:
        raise _error(answer["error"], log, name_module)
    return Built(answer, log)


def _run(command: list[str], log: Path, timeout_seconds: float | None) -> int | None:
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        except BaseException:
            # Ctrl-C must not leave a builder behind.
            process.kill()
            raise


def _death(code: int, log: list[str]) -> str:
    last = f"its last word: {useful_line(log)}"
    if is_out_of_memory(log):
        return f"the builder ran out of memory; {_LESS_MEMORY}; {last}"
    if code == -signal.SIGKILL:
        return f"the builder was killed (SIGKILL), most often by the system for want of memory; {_LESS_MEMORY}; {last}"
    if code < 0:
        return (
            f"the builder was taken down by {_signal_name(-code)}, a crash inside TensorRT; nothing was written. "
            f"A plugin that does not fit does that (try --plugins off), or a driver that does not; {last}"
        )
    return f"the builder ended with exit code {code} and no answer; nothing was written; {last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(error: dict[str, Any], log: list[str], name_module: Callable[[str, str], str | None]) -> VitslimError:
    kind, message = error["kind"], error["message"]
    if kind == "parser":
        return UnsupportedModelError(_refused_nodes(error["nodes"], log, name_module))
    if kind in ("option", "plugin", "weights"):
        return ConfigError(message)
    if kind == "disk":
        return CheckpointError(f"the engine could not be written ({message}); free some space, nothing was left behind")
    if kind == "memory" or is_out_of_memory(log):
        return CheckFailedError(f"the builder ran out of memory; {_LESS_MEMORY}; its last word: {useful_line(log)}")
    return CheckFailedError(f"{message}: {useful_line(log)}")


def _refused_nodes(nodes: list[dict[str, Any]], log: list[str], name_module: Callable[[str, str], str | None]) -> str:
    if not nodes:
        return f"TensorRT's parser does not take the ONNX file: {useful_line(log)}"
    first = nodes[0]
    module = name_module(first["name"], first["operator"])
    where = f" in module '{module}'" if module else ""
    function = f" (inside {' > '.join(first['functions'])})" if first["functions"] else ""
    others = len(nodes) - 1
    more = f"; {others} more node{'s' * (others > 1)} likewise" if others else ""
    return (
        f"TensorRT's parser does not take node '{first['name']}' ({first['operator']}){where}{function}: "
        f"{first['reason']}{more}. Export with another opset or without the method that needs this operator"
    )
