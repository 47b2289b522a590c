"""`lawf bench speed`: its figures are of what they say, its files of results grow, and bad arguments are one line. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lawf_repl.bench import decoding, lengths, speed
from lawf_repl.bench.decoding import Correcting, endless, prompt_of, read_bytes, write, write_plainly
from lawf_repl.bench.figures import Figure
from lawf_repl.bench.memory import forget_peak, peak_bytes
from lawf_repl.bench.models import SHAPES, Subject, random_model, random_tokenizer
from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.layout import joint
from lawf_repl.engine.products import FrozenLinear
from lawf_repl.errors import UsageError
from lawf_repl.verbs import figures as verb
from lawf_repl.verbs.results import UNMEASURED, append_results

TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "vocab_size": 3100, "tie_word_embeddings": True}
FIGURE = Figure("some | thing", 1.0, 2.0, "s", "a peer", 0.6, note="a note")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A random model of a shape of its own, small enough for a test."""
    monkeypatch.setitem(SHAPES, "tiny", (LlamaConfig, LlamaForCausalLM, TINY))
    monkeypatch.setattr(decoding, "DECODED", {"tiny": 4})
    monkeypatch.setattr(lengths, "LONG", (20, 40))
    monkeypatch.setattr(lengths, "LONG_ANSWER", 5)
    monkeypatch.setattr(decoding, "READ_BYTES", 2**16)
    return Subject(Settings(device="cpu"), "tiny")


def test_a_random_model_is_of_its_shape_and_never_ends_by_itself(tiny: Subject) -> None:
    engine = tiny.engine
    assert engine.model.config.num_hidden_layers == 2 and engine.dtype == "float32" and engine.end_ids == {2}
    tokens = write(engine, prompt_of(engine, 10), 40)
    assert all(token.id != 2 for token in tokens) and all(token.text for token in tokens if token.id >= 3072)
    assert float(torch.as_tensor(engine.model.lm_head.weight[2]).detach().abs().max()) == 0
    again = random_model("tiny", torch.device("cpu"), torch.bfloat16)
    assert again.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="--random 7b: expected one of 135m"):
        random_model("7b", torch.device("cpu"), torch.float32)


def test_a_random_tokenizer_shows_every_id_and_splits_as_the_demos() -> None:
    tokenizer = random_tokenizer(3100)
    assert len(tokenizer) == 3100 and tokenizer.decode([3099]) == " w3099"
    assert max(tokenizer("What is the capital of w3099?")["input_ids"]) < 3072


def test_the_peer_writes_the_same_answer_from_weights_that_lie_as_they_were_made(tiny: Subject) -> None:
    prompt = prompt_of(tiny.engine, 10)
    peer = tiny.peer()
    with endless(tiny.engine):
        assert [token.id for token in write(tiny.engine, prompt, 12)] == write_plainly(peer, prompt, 12)
    assert tiny.engine.end_ids == {2}
    # Ours lie anew, side by side; the peer's are separate tensors of torch's own layers, however the processor likes ours to lie.
    ours, theirs = tiny.engine.model.model.layers[0].mlp, peer.model.layers[0].mlp
    assert joint([ours.gate_proj, ours.up_proj]) is not None and joint([theirs.gate_proj, theirs.up_proj]) is None
    assert all(type(module) is not FrozenLinear and (type(module) is nn.Linear or not hasattr(module, "in_features")) for module in peer.modules())
    assert all(parameter.is_contiguous() for parameter in peer.parameters())


def test_a_correction_starts_from_the_whole_answer_and_gives_the_peers_token(tiny: Subject) -> None:
    with endless(tiny.engine):
        correcting = Correcting(tiny.engine, tiny.peer(), 20, 6)
        assert correcting.ours() > 0 and correcting.theirs() > 0
        last = correcting.decoder.last
    assert last is not None and last.ids[:6] == tuple(token.id for token in correcting.known) and last.ids[6] == correcting.fix
    assert last.timing.reuse is not None and (last.timing.reuse.how, last.timing.reuse.read) == ("cut", 1)
    with torch.no_grad():
        assert last.ids[7] == int(correcting.peer(input_ids=torch.tensor([correcting.prefix])).logits[0, -1].argmax())


def test_the_bytes_that_a_token_costs_are_those_of_the_weights_it_reads(tiny: Subject) -> None:
    model: Any = LlamaForCausalLM(LlamaConfig(**TINY | {"tie_word_embeddings": False}))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert read_bytes(model) == whole - 3100 * 32 * 4
    assert read_bytes(tiny.engine.model) == sum(parameter.nbytes for parameter in tiny.engine.model.parameters())


def test_all_parts_are_run_or_the_one_that_was_asked_for(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step", "memory", "training"):  # in processes of their own, of the models that --random names
        monkeypatch.setitem(speed.PARTS, name, lambda subject: iter(()))
    figures = list(speed.run_speed(tiny))
    assert [figure.what.partition(",")[0] for figure in figures] == [
        "first token after a correction at 200 + 30 tokens", "decode with statistics", "decode with statistics",
        "reading a prompt of 40 tokens", "first token after a correction at 40 + 5 tokens", "training step at 20 + 5 tokens",
        *["training step at 40 + 5 tokens"] * 3]
    assert all(figure.ours > 0 and figure.theirs > 0 for figure in figures) and [figure.goal for figure in figures[:3]] == [0.12, None, 0.8]
    assert [figure.unit for figure in speed.run_speed(tiny, "decode")] == ["tokens/s", "tokens/s"]
    with pytest.raises(UsageError, match="--only sleep: expected one of correct, decode"):
        speed.run_speed(tiny, "sleep")


def test_the_wait_for_a_reply_is_of_a_training_that_fixed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "interleaved", lambda runs: {name: run() for name, run in runs.items()})
    subject = Subject(Settings(variations=0, rounds=2))
    (figure,) = decoding.reply_figures(subject)
    assert figure.goal == 6.0 and figure.ratio == figure.ours and not any("lora" in name for name, _ in subject.engine.model.named_parameters())


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, tiny: Subject) -> None:
    def part(subject: Subject) -> Iterator[Figure]:
        yield FIGURE

    monkeypatch.setattr(speed, "PARTS", {"some": part})


@pytest.mark.usefixtures("stubbed")
def test_results_grow_by_a_section_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.md"
    for _ in range(2):
        assert main(["bench", "speed", "--random", "tiny", "--device", "cpu", "--json", "--results", str(path)]) == 0
    found = json.loads(capsys.readouterr().out.partition("}\n{")[0] + "}")
    assert (found["schema"], found["bench"], found["complete"], found["model"]) == ("lawf.bench/1", "speed", True, "random tiny")
    assert found["figures"][0]["ratio"] == 0.5 and found["figures"][0]["reached"] is True
    text = path.read_text(encoding="utf-8")
    assert text.count(", `lawf bench speed --random tiny --device cpu`\n") == 2 and text.count(f"\n{UNMEASURED}\n") == 1
    assert text.count("| some \\| thing | 1 s | 2 s | a peer | 0.5 | at most 0.6: met | 5 | a note |\n") == 2
    assert "- device: cpu" in text and "- threads: " in text and "torch " in text and "- complete: yes" in text
    append_results(path, "lawf bench speed --device cuda", [FIGURE], "cuda", {"device": "an accelerator"})
    assert UNMEASURED not in path.read_text(encoding="utf-8") and text.splitlines()[-1] in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("stubbed")
def test_an_interruption_keeps_the_figures_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(subject: Subject) -> Iterator[Figure]:
        yield FIGURE
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "PARTS", {"some": part})
    path = tmp_path / "results.md"
    assert main(["bench", "speed", "--random", "tiny", "--device", "cpu", "--results", str(path)]) == 130
    assert "- complete: no" in path.read_text(encoding="utf-8") and "some \\| thing" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("given", "message"), [
    (["--random", "7b"], "--random 7b: expected one of 135m, 0.6b, 8b"),
    (["--only", "sleep", "--random", "135m"], "--only sleep: expected one of"),
    (["--random", "135m", "--model", "x"], "--random and --model are two models"),
    (["--adapter", "x"], "leave out --adapter"),
    (["--results", "/nowhere/at/all.md"], "expected a file in a folder that exists"),
])
def test_bad_arguments_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_machine_says_what_was_measured_on_what(tiny: Subject) -> None:
    about = verb.machine(tiny.engine)
    assert about["model"] == "random tiny" and str(about["device"]).startswith("cpu, ") and about["dtype"] == "float32"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be forgotten on Linux alone")
def test_a_peak_that_was_forgotten_does_not_count() -> None:
    device, ones = torch.device("cpu"), 2**26
    block = torch.ones(ones)
    with_block = peak_bytes(device)
    del block
    assert forget_peak(device) and peak_bytes(device) <= with_block - 3 * ones
    block = torch.ones(ones)
    assert peak_bytes(device) >= with_block - ones and len(block) == ones
