"""Programs in place of `vllm` and `ollama`, with as much of their interfaces as lawf uses.

Neither can be installed for tests. The one for vLLM serves with transformers and peft what its command line names; the one for
Ollama answers from a file, by whether the Modelfile has an adapter. STAND_IN says how they misbehave.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOW = os.environ.get("STAND_IN", "")


def write(folder: Path, name: str) -> None:
    """A program `name` in `folder`."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
                    f"from tests.stand_in_servers import {name}\nsys.exit({name}(sys.argv[1:]))\n")
    path.chmod(0o755)


def serve(port: int, answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """Answer every request with what `answer` makes of its path and body, until it is ended."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(answer(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if HOW == "hang":
                time.sleep(60)
            if HOW == "cut":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n{")
                return
            if HOW == "garbled":
                self.wfile.write(b"what?\r\n\r\n")
                return
            if HOW == "drip":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
                for _ in range(40):
                    self.wfile.write(b" ")
                    time.sleep(0.25)
                return
            if HOW == "shape":
                self._send({"message": "no object", "choices": []})
                return
            if HOW == "refuse":
                self.send_error(500, "loras are not yet implemented")
                return
            self._send(answer(self.path, body))

        def _send(self, found: dict[str, Any]) -> None:
            text = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def vllm(arguments: list[str]) -> int:
    """`vllm --version` and `vllm serve`."""
    if arguments == ["--version"]:
        print("0.99.0")
        return 0
    if HOW == "crash":
        print("INFO starting\nValueError: No supported device", file=sys.stderr)
        return 1
    if HOW == "sleep":
        time.sleep(60)
    name, _, folder = option(arguments, "--lora-modules").partition("=")
    served = option(arguments, "--served-model-name")
    assert arguments[0] == "serve" and "--enable-lora" in arguments and int(option(arguments, "--max-lora-rank")) >= 4
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(arguments[1], dtype=getattr(torch, option(arguments, "--dtype")))
    model, tokenizer = PeftModel.from_pretrained(base, folder), AutoTokenizer.from_pretrained(arguments[1])

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/health":
            return {}
        assert path == "/v1/completions" and body["temperature"] == 0 and body["model"] in (name, served)
        ids = torch.tensor([body["prompt"]])

        def generated() -> list[int]:
            text: list[int] = model.generate(input_ids=ids, max_new_tokens=body["max_tokens"], do_sample=False)[0, ids.shape[1]:].tolist()
            return text

        if body["model"] == name and HOW != "base":
            found = generated()
        else:
            with model.disable_adapter():
                found = generated()
        ended = found[-1] == tokenizer.eos_token_id
        return {"choices": [{"text": tokenizer.decode(found, skip_special_tokens=True), "finish_reason": "stop" if ended else "length"}]}

    serve(int(option(arguments, "--port")), answer)
    return 0


def ollama(arguments: list[str]) -> int:
    """`ollama serve`, and `ollama create NAME -f Modelfile`, which leaves in OLLAMA_MODELS whether there is an adapter."""
    models = Path(os.environ["OLLAMA_MODELS"])
    if arguments[0] == "create":
        text = Path(option(arguments, "-f")).read_text()
        if HOW == "crash":
            print("Error: adapters are no longer supported", file=sys.stderr)
            return 1
        files = [line.split()[1] for line in text.splitlines() if line.startswith(("FROM ", "ADAPTER "))]
        assert all(Path(file).is_file() for file in files), "they are named as they lie"
        (models / arguments[1]).write_text("with" if HOW == "always" or (len(files) == 2 and HOW != "base") else "without")
        return 0
    answers = json.loads(os.environ["STAND_IN_ANSWERS"])

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path in ("/", "/api/version"):
            return {"version": "0.99.0"}
        text = answers[(models / body["model"]).read_text()]
        assert body["stream"] is False and body["options"]["temperature"] == 0
        return {"message": {"content": text}, "response": text, "done_reason": "stop"}

    serve(int(os.environ["OLLAMA_HOST"].rpartition(":")[2]), answer)
    return 0
