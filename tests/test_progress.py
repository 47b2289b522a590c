"""Loading says how far it is, through the libraries' own hooks, and draws nothing itself."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import _create_progress_bar
from rich.console import Console
from transformers.utils import logging

from lawf_repl.config import Settings
from lawf_repl.engine.base import load_engine
from lawf_repl.engine.progress import reported, reporter
from lawf_repl.records import Progress
from lawf_repl.verbs.loading import load_shown
from tests.conftest import make_byte_tokenizer, make_tiny_model


def test_weights_are_loaded_with_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_model().save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    seen: list[Progress] = []
    capsys.readouterr()
    load_engine(replace(Settings(), model=str(tmp_path)), seen.append)
    assert seen and all(0 <= progress.done <= progress.of for progress in seen) and seen[-1].done == seen[-1].of
    assert "weights" in seen[-1].what.lower()
    assert capsys.readouterr() == ("", "")
    count = len(seen)
    load_engine(replace(Settings(), model=str(tmp_path)))
    assert len(seen) == count, "the hook is taken out again"


def test_commands_show_it_on_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_model().save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    capsys.readouterr()
    settings = replace(Settings(), model=str(tmp_path))
    shown = io.StringIO()
    load_shown(settings, Console(file=shown, force_terminal=True, width=80))
    assert "Loading weights" in shown.getvalue() and capsys.readouterr() == ("", "")
    load_shown(settings)
    assert capsys.readouterr() == ("", "")


def test_a_download_is_reported_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    with _create_progress_bar(cls=reporter(seen.append), log_level=20, name="x", unit="B", unit_scale=True, total=1000, initial=100,
                              desc="model.safetensors") as bar:
        bar.update(400)
        bar.refresh()
        bar.update(500)
    assert Progress("model.safetensors", 500, 1000, "B") in seen and seen[-1] == Progress("model.safetensors", 1000, 1000, "B")
    assert capsys.readouterr() == ("", "")


def test_the_hook_is_taken_out_after_an_error_too() -> None:
    before = logging.set_tqdm_hook(None)
    with pytest.raises(ZeroDivisionError), reported(lambda progress: None) as keywords:
        assert "tqdm_class" in keywords and logging.set_tqdm_hook(None) is not None
        raise ZeroDivisionError
    assert logging.set_tqdm_hook(before) is None
