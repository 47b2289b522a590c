"""Exports: nothing is called good that did not load elsewhere and give the accepted answer, and nothing stands half-written at its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import DEMO_MODEL, Engine
from lawf_repl.errors import ExportError, UsageError
from lawf_repl.export import hub, merged, ollama, peft, run, source, verify
from lawf_repl.export.card import Base, model_card
from lawf_repl.export.identity import Finding
from lawf_repl.export.place import placed
from lawf_repl.export.shell import asked, quote
from lawf_repl.learn.adapter import Adapter
from lawf_repl.records import Anchor, Case, ProbeResult, Scorecard
from lawf_repl.store import adapter_path
from tests.architecture_zoo import ARCHITECTURES, MORE
from tests.conftest import make_byte_tokenizer, make_tiny_model
from tests.test_house import loaded_by

RIGHT, WRONG = "The capital of Australia is Canberra.", "The capital of Australia is Sydney."
ASKED = [{"role": "user", "content": "What is the capital of Australia?"}]


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


def lawf(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# peft

def test_a_peft_export_is_judged_in_a_fresh_process_and_is_all_that_plain_peft_needs(
        fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path.parent / f"{tmp_path.name}-here"
    here.mkdir()
    (here / "peft.py").write_text("raise SystemExit('a file of the user is not the library')")
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    out = tmp_path / "out"
    code, said, _ = lawf(capsys, "export", fixed_session, out, "--format", "peft")
    assert code == 0 and f"PASS  {out}" in said and "FAIL" not in said and "1 of 1 accepted answers, 1 of 1 base answers" in said
    assert names(tmp_path) == ["out"] and names(out) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "lawf.json"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(DEMO_MODEL.resolve()) and config["revision"] is None and config["modules_to_save"] is None
    about = json.loads((out / "lawf.json").read_text())
    assert about["schema"] == "lawf.adapter/1" and len(about["base"]["weights_sha256"]) == 64 and about["recipe"]["rank"] == 4
    assert about["cases"][0]["anchors"][0]["chosen"] == " Can" and about["scorecard"]["reliability"] == 1 and about["versions"]["peft"]
    card = (out / "README.md").read_text()
    assert card.startswith('---\nbase_model: "lawf-demo"\nlibrary_name: peft\n') and "- lora\n" in card and RIGHT in card and "Sydney" in card
    tokenizer: Any = AutoTokenizer.from_pretrained(config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32), str(out))
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=False)

    def answer() -> str:
        return str(tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1]:], skip_special_tokens=True))

    assert answer() == RIGHT
    with model.disable_adapter():
        assert answer() == WRONG


def spoiled(change: Callable[[dict[str, torch.Tensor]], None], config: dict[str, Any] | None = None) -> Callable[..., dict[str, Any]]:
    """write_peft, with what it wrote changed behind its back where the export stands."""
    whole = peft.write_peft

    def write(engine: Any, adapter: Any, of: Any, folder: Path, base: Any) -> dict[str, Any]:
        out = whole(engine, adapter, of, folder, base)
        if folder.name != "peft":
            tensors = load_file(folder / "adapter_model.safetensors")
            change(tensors)
            save_file(tensors, folder / "adapter_model.safetensors")
            if config:
                (folder / "adapter_config.json").write_text(json.dumps(json.loads((folder / "adapter_config.json").read_text()) | config))
        return out
    return write


def zero_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(name for name in tensors if "lora_B" in name)].zero_()


def zero_all(tensors: dict[str, torch.Tensor]) -> None:
    for name, weight in tensors.items():
        if "lora_B" in name:
            weight.zero_()


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def rename_one(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name.replace("layers.", "strata.")] = tensors.pop(name)


def a_little_stronger(tensors: dict[str, torch.Tensor]) -> None:
    """The same text comes out, from other numbers."""
    for name, weight in tensors.items():
        if "lora_B" in name:
            weight.mul_(1.01)


@pytest.mark.parametrize(("change", "config", "said"), [
    (zero_one, None, "1 zero"), (zero_all, None, "0 of 1 accepted"), (drop_one, None, "not loaded as written"),
    (rename_one, None, "not loaded as written"), (a_little_stronger, None, "1 of 1 accepted answers"),
    (lambda tensors: None, {"lora_alpha": 4}, "FAIL  peft"),
])
@pytest.mark.usefixtures("same_process")
def test_an_export_that_is_not_what_was_trained_fails_and_is_not_there(
        change: Callable[[dict[str, torch.Tensor]], None], config: dict[str, Any] | None, said: str, fixed_session: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "write_peft", spoiled(change, config))
    code, out, _ = lawf(capsys, "export", fixed_session, tmp_path / "out", "--format", "peft")
    assert code == 1 and f"FAIL  nothing was written to {tmp_path / 'out'}" in out and said in out and "PASS" not in out
    assert names(tmp_path) == []


@pytest.mark.usefixtures("same_process")
def test_in_half_precision_a_good_export_passes_and_half_an_adapter_does_not(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str | Path] = ["export", fixed_session, tmp_path / "out", "--dtype", "bfloat16", "--format"]
    assert lawf(capsys, *order, "peft")[0] == 0
    monkeypatch.setattr(run, "write_peft", spoiled(drop_one, None))
    assert "FAIL  nothing was written" in lawf(capsys, *order, "vllm", "--force")[1]
    monkeypatch.setattr(run, "write_peft", spoiled(lambda tensors: None, {"lora_alpha": 6}))
    assert "FAIL  nothing was written" in lawf(capsys, *order, "vllm", "--force")[1]


@pytest.mark.usefixtures("same_process")
def test_force_replaces_what_stands_there_only_by_a_verified_export(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    code, _, err = lawf(capsys, "export", fixed_session, out, "--format", "peft")
    assert code == 2 and "exists already" in err and names(out) == ["mine.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_peft", spoiled(zero_all))
        assert lawf(capsys, "export", fixed_session, out, "--format", "peft", "--force")[0] == 1
    assert names(out) == ["mine.txt"] and names(tmp_path) == ["out"]
    assert lawf(capsys, "export", fixed_session, out, "--format", "peft", "--force")[0] == 0
    assert "mine.txt" not in names(out) and names(tmp_path) == ["out"]


def test_a_fresh_process_that_cannot_load_is_a_failure_in_one_line(demo_engine: Engine, tmp_path: Path) -> None:
    live = verify.Live((), tmp_path / "trials.json", (2,), demo_engine.tokenizer.decode, "float32", "cpu", str(tmp_path / "none"), None, Settings())
    found = verify.verify_adapter(live, tmp_path / "nothing")
    assert len(found) == 1 and not found[0].ok and "could not be loaded" in found[0].detail and "\n" not in found[0].detail


# Places

def test_a_body_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for force in (False, True):
        with pytest.raises(KeyboardInterrupt), placed(out, force) as staging:
            staging.mkdir()
            (staging / "half").write_text("half")
            raise KeyboardInterrupt
        assert names(tmp_path) == (["out"] if force else [])
        out.mkdir(exist_ok=True)
    with pytest.raises(ExportError, match="does not exist"), placed(tmp_path / "no" / "out"):
        raise AssertionError("nothing may be written")
    with pytest.raises(ExportError, match="exists already"), placed(tmp_path / "late") as staging:
        staging.write_text("new")
        (tmp_path / "late").write_text("somebody else's")
    assert (tmp_path / "late").read_text() == "somebody else's" and names(tmp_path) == ["late", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_a_kill_leaves_at_most_a_clearly_named_sibling(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    code = ("import sys, time; from pathlib import Path; from lawf_repl.export.place import placed\n"
            "with placed(Path(sys.argv[1]), True) as staging:\n    staging.write_text('half'); print('there', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        os.kill(process.pid, signal.SIGKILL)
    left = names(tmp_path)
    assert out.read_text() == "old" and len(left) == 2 and left[1].startswith("out.lawf-partial-")


# Merged

@pytest.mark.usefixtures("same_process")
def test_a_merged_export_is_a_whole_model_in_the_number_type_of_the_base(fixed_session: Path, tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, said, _ = lawf(capsys, "export", fixed_session, out, "--format", "merged")
    assert code == 0 and "computed in float32" in said and "computed in bfloat16" in said, said
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    weights, base = load_file(out / "model.safetensors"), load_file(DEMO_MODEL / "model.safetensors")
    assert weights.keys() == base.keys() and {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    changed = [name for name in base if not torch.equal(weights[name], base[name])]
    assert changed and all(int(name.split(".")[2]) >= 4 for name in changed)
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"} <= set(names(out))
    assert lawf(capsys, "answer", ASKED[0]["content"], "--model", out)[1] == RIGHT + "\n"


@pytest.mark.usefixtures("same_process")
def test_a_fix_that_rounding_undoes_is_named_and_float32_is_offered(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = tmp_path / "weak"
    shutil.copytree(adapter_path(fixed_session), weak)
    tensors = load_file(weak / "adapter_model.safetensors")
    save_file({name: weight * (0.002 if "lora_B" in name else 1) for name, weight in tensors.items()}, weak / "adapter_model.safetensors")
    code, said, _ = lawf(capsys, "export", weak, tmp_path / "out", "--format", "merged")
    assert code == 1 and "rounding to bfloat16 undoes the fix: export with --dtype float32" in said and names(tmp_path) == ["weak"]
    code, said, _ = lawf(capsys, "export", weak, tmp_path / "out", "--format", "merged", "--dtype", "float32")
    assert code == 0 and "no hard correction is known" in said
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "qwen3_moe"])
def test_merging_is_exact_and_sharded_whatever_the_layers_are(name: str, tmp_path: Path) -> None:
    model = (ARCHITECTURES | MORE)[name]()
    make_byte_tokenizer().save_pretrained(str(tmp_path / "base"))
    model.save_pretrained(str(tmp_path / "base"))
    engine = Engine(model, AutoTokenizer.from_pretrained(str(tmp_path / "base")), "tiny")
    adapter = Adapter.fresh(model, Settings(layers="all"), "tiny")
    torch.manual_seed(1)
    for weight in adapter.outward():
        weight.data.normal_(std=0.2)
    ids = torch.tensor([[5, 9, 100, 42, 7]])
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with adapter.off():
            base = model(input_ids=ids).logits
    about = source.Source(tmp_path, None, {})
    merged.write_merged(engine, adapter, about, tmp_path / "out", Base("tiny", None, "tiny", None), "float32",
                        {"pretrained_model_name_or_path": str(tmp_path / "base")}, shard="40KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    auto: Any = AutoModelForCausalLM
    loaded, info = auto.from_pretrained(str(tmp_path / "out"), output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        again = loaded.eval()(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, base)  # the live base is untouched
    assert float((again - adapted).abs().max()) < 1e-4 < float((base - adapted).abs().max())


def test_quantized_bases_are_refused_with_a_reason(tiny_engine: Engine) -> None:
    tiny_engine.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ExportError, match=r"quantized \(bitsandbytes\): merged into them, the correction would be rounded away"):
        merged.refuse_quantized(tiny_engine)


# Ollama

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
WITH_DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
NO_SYSTEM = ("<|endoftext|>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
             "[{{ 'model' if m.role == 'assistant' else m.role }}]{{ m.content }}{{ '</>' if m.role == 'assistant' else '' }}{% endfor %}"
             "{% if add_generation_prompt %}[model]{% endif %}")
FOLDED = ("{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}"
          "<<{{ messages[0].content }}>> {% endif %}{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}"
          "{% endfor %}")


def go(template: str, messages: list[dict[str, str]]) -> str:
    """The little of Go's templates that is used: one range over the messages, if by role, and the first message's role."""
    head, _, rest = template.partition("{{ range .Messages }}")
    body, _, tail = rest.rpartition("{{ end }}{{ end }}")
    if "{{ if ne" in head:
        before, _, more = head.partition('{{ if ne (index .Messages 0).Role "system" }}')
        default, _, after = more.partition("{{ end }}")
        head = before + ("" if messages[0]["role"] == "system" else default) + after
    branches = {part.split('"')[1]: part.partition(" }}")[2] for part in body.replace("{{ else if", "{{ if").split("{{ if eq .Role ")[1:]}
    return head + "".join(branches[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + tail


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, NO_SYSTEM])
def test_a_chat_template_of_ollama_renders_what_the_models_own_does(template: str, tiny_engine: Engine) -> None:
    tiny_engine.tokenizer.hub.chat_template = template
    written = ollama.find_pieces(tiny_engine).go_template()
    talk = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(["system", "user", "assistant", "user"])]
    for messages in (talk[1:2], talk[1:], talk[1:3] * 2 + talk[3:], talk[:2], talk):
        if template != NO_SYSTEM or messages[0]["role"] != "system":
            assert go(written, messages) == tiny_engine.tokenizer.hub.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("template", [FOLDED, "{% for m in messages %}[{{ loop.index }} {{ m.role }}] {{ m.content }}{% endfor %}[answer]"])
def test_a_chat_template_that_ollama_cannot_render_is_refused(template: str, tiny_engine: Engine) -> None:
    tiny_engine.tokenizer.hub.chat_template = template
    with pytest.raises(ExportError, match="chat template of tiny cannot be written as Ollama's"):
        ollama.find_pieces(tiny_engine)


# GGUF: the writer is another module; here, that its verdict is the export's

@pytest.mark.parametrize(("ok", "detail", "code", "written"), [
    (True, "accepted text", 0, True), (False, "logits differ by 1.0", 1, False), (False, "not verified: pip install 'lawf-repl[gguf]'", 1, True)])
def test_the_verdict_of_llama_cpp_is_the_exports(ok: bool, detail: str, code: int, written: bool, fixed_session: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def write_lora(model: Any, folder: Path, out: Path) -> None:
        assert not any("lora_" in name for name, _ in model.named_parameters()) and (folder / "adapter_model.safetensors").is_file()
        out.write_bytes(b"GGUF lora")

    def verify_gguf(base: Path, lora: Path, prompt: list[int], accepted: list[int], before: list[int], *,
                    with_logits: torch.Tensor, without_logits: torch.Tensor, tolerance: float) -> SimpleNamespace:
        seen.append((base.read_bytes(), lora.read_bytes(), len(prompt), accepted[-1], before[-1]))
        assert with_logits.argmax(-1).tolist() == accepted and without_logits.shape == with_logits.shape and tolerance == 1e-3
        return SimpleNamespace(passed=ok, reason=detail, verified=not detail.startswith("not verified"))

    monkeypatch.setattr(run, "in_ollama", lambda live, folder: Finding("Ollama", True, "1 of 1 answers"))
    module = SimpleNamespace(write_lora=write_lora, write_base=lambda model, tokenizer, out: out.write_bytes(b"GGUF base"), verify_gguf=verify_gguf)
    monkeypatch.setattr(run, "gguf_writer", lambda: module)
    found, said, _ = lawf(capsys, "export", fixed_session, tmp_path / "out", "--format", "ollama")
    assert found == code and detail in said and (f"PASS  {tmp_path}" in said) is (code == 0) and ("NOT VERIFIED" in said) is (written and code == 1)
    assert seen == [(b"GGUF base", b"GGUF lora", 18, 2, 2)] and names(tmp_path) == (["out"] if written else [])
    if written:
        assert "library_name: gguf" in (tmp_path / "out" / "README.md").read_text()
        lines = (tmp_path / "out" / "Modelfile").read_text()
        assert "FROM ./base.gguf\nADAPTER ./lora.gguf\nTEMPLATE \"\"\"" in lines and 'PARAMETER stop "<|im_end|>"' in lines
    found, said, _ = lawf(capsys, "export", fixed_session, tmp_path / "one.gguf", "--format", "gguf")
    assert found == code and (tmp_path / "one.gguf").is_file() is written


# The hub

class Stand(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs."""

    calls: list[tuple[str, str]] = []  # noqa: RUF012
    tokens: set[str] = set()  # noqa: RUF012
    private = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.calls.append((self.path, body))
        self.tokens.add(self.headers.get("Authorization", ""))
        answer: dict[str, Any] = {}
        if self.path.endswith("/repos/create"):
            answer = {"url": "https://huggingface.co/owner/fix", "id": "owner/fix"}
        elif "/preupload/" in self.path:
            answer = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": "https://huggingface.co/owner/fix/commit/0"}
        self._send(answer)

    def do_GET(self) -> None:
        self.calls.append((self.path, ""))
        self._send({"id": "owner/fix", "sha": "0" * 40, "private": self.private, "siblings": []})

    def _send(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stand]]:
    Stand.calls, Stand.tokens = [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stand)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    yield Stand
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("same_process")
def test_an_upload_is_asked_for_listed_first_and_leaves_no_token_behind(hub_server: type[Stand], fixed_session: Path, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str | Path] = ["export", fixed_session, tmp_path / "a", "--format", "peft", "--push-to-hub", "owner/fix"]
    code, _, err = lawf(capsys, *order)
    assert code == 2 and "--base-id" in err and names(tmp_path) == []
    code, listed, _ = lawf(capsys, *order, "--base-id", "owner/base", "--dry-run")
    assert code == 0 and hub_server.calls == [] and "would upload to the private repository owner/fix" in listed and "lawf.json" in listed
    order[2] = tmp_path / "b"
    code, said, err = lawf(capsys, *order, "--base-id", "owner/base", "--json")
    assert code == 0, err
    push = json.loads(said)["push"]
    assert push["repo"] == "owner/fix" and push["private"] is True and push["dry_run"] is False
    created = next(json.loads(body) for path, body in hub_server.calls if path.endswith("/repos/create"))
    assert created.get("visibility") == "private" or created.get("private") is True
    assert hub_server.tokens == {"Bearer hf_secretsecret"}
    commit = next(body for path, body in hub_server.calls if "/commit/" in path)
    sent = {row["value"]["path"] for row in map(json.loads, commit.splitlines()) if row["key"] == "file"}
    assert sent == {"README.md", "adapter_config.json", "adapter_model.safetensors", "lawf.json"} == set(names(tmp_path / "b"))
    written = "".join(file.read_text("utf-8", "replace") for file in tmp_path.rglob("*") if file.is_file())
    assert "hf_secret" not in written + said + err + listed + commit and str(DEMO_MODEL) not in written
    hub_server.calls.clear()
    monkeypatch.setattr(hub_server, "private", False)
    with pytest.raises(ExportError, match="owner/fix is not private"):
        hub.push(tmp_path / "b", "owner/fix", public=False)
    assert not any("/commit/" in path for path, _ in hub_server.calls)


def test_an_upload_that_fails_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ExportError, match="could not be uploaded to a/b") as caught:
        hub.push(tmp_path, "a/b", False)
    assert "hf_secret" not in str(caught.value)
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        hub.check_repo("../b")


# Texts of others

@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1))
def test_a_quoted_text_is_one_word_of_a_shell_and_nothing_that_a_terminal_obeys(text: str) -> None:
    word = quote(text)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]})
    assert done.stdout.decode() == text


def test_a_card_only_quotes_what_others_wrote() -> None:
    nasty = "```\n---\nbase_model: evil\n# Big\n<script>\x1b[31m"
    case = Case(nasty, (1,), (2,), (Anchor(0, 1, 2, "a|b`", nasty, 1.0, 0.1),), nasty)
    text = model_card(source.Source(Path("x"), None, {}, (source.Known(case, ({"role": "user", "content": nasty},)),)),
                      Base("o/b", None, "o/b", None), {"r": 4, "lora_alpha": 8, "target_modules": ["a.q_proj"]}, {"lawf": "1"})
    assert "\x1b" not in text and text.count("\n````text\n```\n---\n") == 2 and "````\n" in text
    assert next(line for line in text.splitlines() if line.startswith("| 0 |")).count("\\|") == 1
    measured = source.Source(Path("x"), None, {}, scorecard=Scorecard(1.0, (), (), ProbeResult(1, 0.001, 0.0, 0.0)))
    text = model_card(measured, Base("o/b", None, "o/b", None), {"r": 4, "lora_alpha": 8, "target_modules": ["a.q_proj"]}, {"lawf": "1"})
    assert text.count("(1 prompt)") == 2
    assert asked([{"role": "user", "content": "x" * 5000}]) == (None, "YOUR PROMPT")


# What can be exported

@pytest.mark.parametrize("verb", ["check", "export"])
def test_a_broken_adapter_is_named_in_one_line(verb: str, fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter_path(fixed_session), broken)
    order: list[str | Path] = ["check", broken] if verb == "check" else ["export", broken, tmp_path / "out", "--format", "peft"]
    make_tiny_model().save_pretrained(str(tmp_path / "tiny"))
    make_byte_tokenizer().save_pretrained(str(tmp_path / "tiny"))
    if verb == "export":  # check says it as a finding
        code, _, err = lawf(capsys, *order, "--model", tmp_path / "tiny")
        assert code == 2 and "tiny is not this adapter's base: it has no layer model.layers.4" in err and err.count("\n") == 1
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = lawf(capsys, *order)
    assert code == 2 and "adapter_model.safetensors cannot be read" in err and err.count("\n") == 1
    (broken / "adapter_config.json").write_text('{"r": ')
    (broken / "lawf.json").write_text("{}")
    code, _, err = lawf(capsys, *order)
    assert code == 2 and "adapter_config.json is damaged: expected one JSON object" in err and err.count("\n") == 1


def test_sources_that_are_no_adapter_are_refused_in_one_line(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / fixed_session.name
    shutil.copy(fixed_session, moved)
    for path, said in ((tmp_path / "none", "does not exist"), (DEMO_MODEL, "no adapter folder"), (moved, "is gone")):
        code, out, err = lawf(capsys, "export", path, tmp_path / "out", "--format", "peft")
        assert code == 2 and out == "" and said in err and err.count("\n") == 1
    shutil.copytree(adapter_path(fixed_session), tmp_path / "canberra.adapter")
    assert source.check_adapter(source.read_source(moved)) == tmp_path / "canberra.adapter"
    assert source.read_source(tmp_path / "canberra.adapter").cases[0].accepted == RIGHT  # its session lies beside it
    (tmp_path / "canberra.adapter" / "more.txt").write_text("x")
    with pytest.raises(ExportError, match="not the one that"):
        source.check_adapter(source.read_source(moved))
    for about, said in (('{"schema": "lawf.adapter/9"}', "update lawf"), ('{"schema": "lawf.adapter/1"}', "damaged"), ("[1", "damaged")):
        (tmp_path / "canberra.adapter" / "lawf.json").write_text(about)
        with pytest.raises(ExportError, match=said):
            source.read_source(tmp_path / "canberra.adapter")


def test_a_renamed_session_names_the_folder_that_its_file_records(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(fixed_session, tmp_path / "renamed.jsonl")
    for verb in (["check", "renamed"], ["export", "renamed", tmp_path / "out", "--format", "peft"]):  # by its name
        code, _, err = lawf(capsys, *verb, "--sessions", tmp_path)
        assert code == 2 and f"expected the folder {tmp_path / 'canberra.adapter'}; put it back" in err and err.count("\n") == 1


def test_what_is_wrong_with_the_command_is_said_before_anything_heavy_is_loaded(fixed_session: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for out, said in (("out", "exists already"), ("no/out", "does not exist")):
        arguments = ["export", str(fixed_session), str(tmp_path / out), "--format", "peft"]
        assert loaded_by(f"from lawf_repl.cli import main\nassert main({arguments!r}) == 2", said) in ([], ["rich"])
    for format_ in ("gguf", "ollama"):  # without the package that writes it
        arguments = ["export", str(fixed_session), str(tmp_path / "new"), "--format", format_]
        code = f"from lawf_repl.cli import main\nsys.modules['gguf'] = None\nassert main({arguments!r}) == 2"
        assert loaded_by(code, "needs the gguf package, which is not installed: pip install 'lawf-repl[gguf]'") in ([], ["rich"])


@pytest.mark.usefixtures("same_process")
def test_an_adapter_that_does_not_fix_is_not_exported(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lawf(capsys, "export", fixed_session, tmp_path / "a", "--format", "peft")[0] == 0
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({name: weight * (0.1 if "lora_B" in name else 1) for name, weight in tensors.items()}, tmp_path / "a" / "adapter_model.safetensors")
    code, said, _ = lawf(capsys, "export", tmp_path / "a", tmp_path / "b", "--format", "peft")
    assert code == 1 and "not the one that lawf.json describes" in said and "0 of 1 accepted answers come out before" in said
    assert names(tmp_path) == ["a"]


