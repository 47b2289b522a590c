"""An export in the software that serves it: its server is started, asked the accepted prompts over HTTP, and ended.

vLLM and Ollama are programs of their own. Where one is not installed nothing is known of the export, and that is what is said.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawf_repl.errors import first_line
from lawf_repl.export.identity import NOT_VERIFIED, Finding
from lawf_repl.export.trials import Trial, room
from lawf_repl.export.verify import Live

START_SECONDS = 900.0   # until a server answers: vLLM compiles a model first
ASK_SECONDS = 300.0     # for one answer, and for making a model of the files
END_SECONDS = 20.0      # for a server to end when it is told to
POLL_SECONDS = 0.2
LARGEST = 2**24         # bytes of an answer
PIECE = 2**16
UNEXPECTED = (LookupError, TypeError, AttributeError, ValueError)  # what reading an answer of another form raises
# The machine's proxy has no business with a server on the same machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(Exception):
    """A server that did not do what it was asked, in one line."""


def in_vllm(live: Live, command: Sequence[str], name: str, base: str) -> Finding:
    """The trials by `vllm serve`: with the LoRA under `name` and without it under `base`. `command` is what follows `vllm`, but for the port."""
    program = shutil.which("vllm")
    if program is None:
        return Finding("vLLM", False, f"{NOT_VERIFIED}there is no vllm on the PATH; with it installed, export again, or compare by hand")
    port = free_port()
    try:
        version = said(program, "--version").removeprefix("vllm ")
        with server([program, *command, "--host", "127.0.0.1", "--port", str(port)], f"http://127.0.0.1:{port}/health"):
            def ask(model: str, trial: Trial, tokens: int) -> tuple[str, bool]:
                found = post(f"http://127.0.0.1:{port}/v1/completions",
                             {"model": model, "prompt": list(trial.prompt_ids), "max_tokens": tokens, "temperature": 0})
                choice = found["choices"][0]
                return str(choice["text"]), choice.get("finish_reason") == "stop"

            return _compared("vLLM " + version, live, [ask(name, trial, _tokens(live, trial.accepted_ids)) for trial in live.trials],
                             [ask(base, trial, _tokens(live, trial.base_ids)) for trial in live.trials])
    except (ServerError, OSError) as error:
        return Finding("vLLM", False, first_line(error))
    except UNEXPECTED as error:
        return Finding("vLLM", False, f"its server answered in another form than /v1/completions has ({type(error).__name__}: {first_line(error)})")


def in_ollama(live: Live, folder: Path) -> Finding:
    """The trials by an Ollama server of our own, whose models lie in a temporary folder: made from the Modelfile, with ADAPTER and without."""
    program = shutil.which("ollama")
    if program is None:
        return Finding("Ollama", False, f"{NOT_VERIFIED}there is no ollama on the PATH; with it installed, export again, or compare by hand")
    port = free_port()
    place = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="lawf-ollama-") as work:
        env = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": work, "HOME": os.environ.get("HOME", work)}
        try:
            with server([program, "serve"], place, env):
                version = str(get(f"{place}/api/version").get("version", ""))
                text = (folder / "Modelfile").read_text(encoding="utf-8")
                plain = folder / "Modelfile.base"
                plain.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("ADAPTER ")), encoding="utf-8")
                try:
                    for model, file in (("lawf-adapted", "Modelfile"), ("lawf-base", plain.name)):
                        said(program, "create", model, "-f", file, env=env, folder=folder)
                finally:
                    plain.unlink()

                def ask(model: str, trial: Trial, tokens: int) -> tuple[str, bool]:
                    body = {"model": model, "stream": False, "options": {"temperature": 0, "num_predict": tokens}}
                    if trial.messages:
                        found = post(f"{place}/api/chat", body | {"messages": list(trial.messages)})
                        return str(found["message"]["content"]), found.get("done_reason") == "stop"
                    found = post(f"{place}/api/generate", body | {"prompt": live.decode(list(trial.prompt_ids)), "raw": True})
                    return str(found["response"]), found.get("done_reason") == "stop"

                return _compared(f"Ollama {version}", live, [ask("lawf-adapted", trial, _tokens(live, trial.accepted_ids)) for trial in live.trials],
                                 [ask("lawf-base", trial, _tokens(live, trial.base_ids)) for trial in live.trials])
        except (ServerError, OSError) as error:
            return Finding("Ollama", False, first_line(error))
        except UNEXPECTED as error:
            return Finding("Ollama", False, f"its server answered in another form than its API has ({type(error).__name__}: {first_line(error)})")


def _tokens(live: Live, ids: Sequence[int]) -> int:
    """Tokens that an answer may have: of one that did not end, no more than are known."""
    return room(len(ids)) if ids and ids[-1] in live.end_ids else len(ids)


def _compared(what: str, live: Live, adapted: Sequence[tuple[str, bool]], without: Sequence[tuple[str, bool]]) -> Finding:
    """Whether the accepted answers came, and the base's where the adapter is off. Where none was accepted, all of the live adapter's."""
    right = [_same(live, answer, trial.accepted_ids) for answer, trial in zip(adapted, live.trials, strict=True)]
    before = [_same(live, answer, trial.base_ids) for answer, trial in zip(without, live.trials, strict=True)]
    given = [trial.given for trial in live.trials]
    counted = [one for one, own in zip(right, given, strict=True) if own or not any(given)]
    # Of the base's own answers rounding may turn one; that it gives the accepted ones means that the adapter is on there, too.
    leaked = [number for number, trial in enumerate(live.trials)
              if not before[number] and trial.accepted_ids != trial.base_ids and _same(live, without[number], trial.accepted_ids)]
    line = f"{sum(counted)} of {len(counted)} answers are the accepted ones, {sum(before)} of {len(before)} base answers without the adapter"
    if not all(counted):
        wrong = next(number for number, one in enumerate(right) if not one and (given[number] or not any(given)))
        served_base = _same(live, adapted[wrong], live.trials[wrong].base_ids)
        line += "; it serves the base, as if there were no adapter" if served_base else f"; found {adapted[wrong][0][:80]!a}"
    elif leaked:
        line += "; it serves the adapter where the base was asked for"
    ok = all(counted) and not leaked
    return Finding(what, ok, line)


def _same(live: Live, answer: tuple[str, bool], ids: Sequence[int]) -> bool:
    """Whether a served text and its end are those of `ids`. Servers may strip the space that an answer begins or ends with."""
    ended = bool(ids) and ids[-1] in live.end_ids
    text = live.decode(list(ids)[:-1] if ended else list(ids))
    return answer[0].strip() == str(text).strip() and answer[1] == ended


@contextmanager
def server(command: Sequence[str], health: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server that answers at `health` inside the block, and is gone behind it. Raises ServerError where it does not come up."""
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (env or {}),
                                   start_new_session=os.name == "posix")  # it has children of its own, which end with it
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(health):
                if process.poll() is not None:
                    raise ServerError(f"{Path(command[0]).name} ended with {process.returncode} before it served: {_last(log)}")
                if time.monotonic() > until:
                    raise ServerError(f"{Path(command[0]).name} did not serve within {START_SECONDS:.0f} s: {_last(log)}")
                time.sleep(POLL_SECONDS)
            yield
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            process.wait(END_SECONDS)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            continue


def _last(log: Any) -> str:
    """The last line of a server's log that says something."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return str((lines or ["it said nothing"])[-1])[:200]


def said(program: str, *arguments: str, env: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """What a command prints. Raises ServerError where it fails."""
    name = f"{Path(program).name} {arguments[0]}"
    try:
        done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", errors="replace",
                              timeout=ASK_SECONDS, check=False, env=os.environ | (env or {}), cwd=folder)
    except OSError as error:
        raise ServerError(f"{program} could not be started: {error.strerror or first_line(error)}") from None
    except subprocess.TimeoutExpired:
        raise ServerError(f"{name} did not end within {ASK_SECONDS:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ServerError(f"{name} ended with {done.returncode}: {(lines or ['it said nothing'])[-1][:200]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(address: str) -> bool:
    try:
        with _DIRECT.open(address, timeout=5):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def get(address: str) -> dict[str, Any]:
    """A JSON object from a server. Raises ServerError."""
    return _asked(urllib.request.Request(address))


def post(address: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that a server answers. Raises ServerError, with what the server said of it."""
    return _asked(urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"}))


def _asked(request: urllib.request.Request) -> dict[str, Any]:
    where = request.full_url
    try:
        until = time.monotonic() + ASK_SECONDS
        with _DIRECT.open(request, timeout=ASK_SECONDS) as response:
            found = json.loads(_whole(response, until))
    except urllib.error.HTTPError as error:
        raise ServerError(f"{where} answered {error.code}: {error.read(400).decode('utf-8', 'replace').strip()[:200]}") from None
    except TimeoutError:
        raise ServerError(f"{where} did not answer within {ASK_SECONDS:.0f} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerError(f"{where} did not answer as it should: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise ServerError(f"{where} answered with something else than an object")
    return found


def _whole(response: Any, until: float) -> bytes:
    """All that a server sends. The limit of the socket is one of each read: a server that sends a byte now and then would never meet it."""
    parts: list[bytes] = []
    while part := response.read1(PIECE):
        parts.append(part)
        if time.monotonic() > until:
            raise TimeoutError
        if sum(map(len, parts)) > LARGEST:
            raise ValueError("it sends more than an answer")
    if response.length:  # it said how much there would be
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)
