"""`lawf export`: an adapter for the software that serves it, loaded there in a fresh process before it is called good."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawf_repl.config import Settings
from lawf_repl.errors import ExportError, UsageError
from lawf_repl.export.place import check_place
from lawf_repl.export.source import Source, base_id, check_adapter, read_source
from lawf_repl.places import find_source, sessions_place
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import print_json

if TYPE_CHECKING:  # the real imports bring torch: what is wrong with the command itself is said before
    from lawf_repl.engine.base import Engine
    from lawf_repl.export.identity import Finding
    from lawf_repl.export.run import Exported


def run_export(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0 if every check held (PASS), 1 if one did not (FAIL) or could not be made."""
    repo: str | None = options.push_to_hub
    if options.dry_run and repo is None:
        raise UsageError("--dry-run lists what --push-to-hub REPO would upload: name the repository")
    if repo is not None or options.base_id is not None:
        from lawf_repl.export.hub import check_repo

        for given, flag in ((repo, "--push-to-hub"), (options.base_id, "--base-id")):
            if given is not None:
                check_repo(given, flag)
    if repo is not None and settings.offline and not options.dry_run:
        raise UsageError("--push-to-hub needs the network, which --offline forbids: leave out one of them")
    out: Path = options.out
    check_place(out, options.force)
    if options.format in ("gguf", "ollama") and find_spec("gguf") is None:
        raise ExportError("writing GGUF needs the gguf package, which is not installed: pip install 'lawf-repl[gguf]'")
    source = source_of(options)
    folder = check_adapter(source)
    if {folder.resolve(), *folder.resolve().parents} & {out.resolve()} or out.resolve().parent == folder.resolve():
        raise UsageError(f"{out} is in the way of {folder}, which is to be exported: name another place")
    return _export(options, settings, source, folder)


def _export(options: argparse.Namespace, settings: Settings, source: Source, folder: Path) -> int:
    from lawf_repl.export.identity import misfit, shapes
    from lawf_repl.export.run import Order, export, exported_json
    from lawf_repl.learn.adapter import Adapter

    repo: str | None = options.push_to_hub
    order = Order(options.out, options.format, options.force, options.base_id)
    shapes(folder)  # a file that cannot be read is told before the model is loaded
    chosen = base_settings(options, settings, source)
    if repo is not None and options.base_id is None and (chosen.model is None or Path(chosen.model).expanduser().is_dir()):
        raise UsageError("--push-to-hub: the base is a local folder, which nobody else can load: name its hub id with --base-id OWNER/NAME")
    engine = load_base(chosen, source)
    if wrong := misfit(engine, folder):
        raise ExportError(f"{wrong}; name its own with --model")
    exported = export(engine, Adapter.load(engine.model, folder), source, order, chosen)
    pushed = _push(exported, repo, options) if repo is not None else None
    if settings.json:
        print_json(exported_json(exported, pushed))
    else:
        show(exported, source.path, pushed)
        if repo is not None and pushed is None:
            print(f"\nnothing {'would be' if options.dry_run else 'was'} uploaded: only what was verified is")
    return 0 if exported.ok else 1


def source_of(options: argparse.Namespace) -> Source:
    """What SESSION_OR_ADAPTER is: a file, a folder, or the name of a session. Raises ExportError, SessionError."""
    return read_source(find_source(options.source, sessions_place(getattr(options, "sessions", None), os.environ).path))


def load_base(settings: Settings, source: Source) -> Engine:
    """The base that `base_settings` found; its notes go to standard error."""
    from lawf_repl.engine.base import load_engine

    engine = load_engine(settings)
    for note in [*engine.notes, *([source.dropped] if source.dropped else [])]:
        print(f"lawf: {visible(note)}", file=sys.stderr)
    return engine


def base_settings(options: argparse.Namespace, settings: Settings, source: Source) -> Settings:
    """Settings with the model, its revision and the template's arguments that the source was made with, unless flags say otherwise."""
    if source.template_args:
        from lawf_repl.restore import with_recorded

        settings = with_recorded(settings, {"template_args": source.template_args}, vars(options))
    if "model" in options:
        return settings
    revision = source.base.get("revision")
    return replace(settings, model=base_id(source), revision=settings.revision or (revision if isinstance(revision, str) and revision else None))


def _push(exported: Exported, repo: str, options: argparse.Namespace) -> dict[str, Any] | None:
    if not exported.ok:
        return None
    if not exported.out.is_dir():
        raise UsageError("--push-to-hub uploads a folder: give OUT a name without .gguf")
    from lawf_repl.export.hub import push

    address = None if options.dry_run else push(exported.out, repo, options.public)
    return {"repo": repo, "private": not options.public, "dry_run": options.dry_run, "address": address}


def show(exported: Exported, source: Path, pushed: dict[str, Any] | None) -> None:
    """What was checked, the verdict, and the commands as they can be copied: never wrapped."""
    print(f"{visible(str(source))} -> {visible(str(exported.out))} ({exported.format})")
    for finding in exported.findings:
        print(finding_line(finding))
    unverified = exported.written and not exported.ok
    if exported.ok:
        print(f"PASS  {visible(str(exported.out))}")
    elif unverified:
        print(f"NOT VERIFIED  {visible(str(exported.out))} was written; what is to serve it has not loaded it")
    else:
        print(f"FAIL  nothing was written to {visible(str(exported.out))}")
    for name, size in exported.files:
        print(f"      {visible(name)}  {size:,} bytes")
    for note in exported.notes:
        print(f"note: {visible(note)}")
    if exported.commands:
        print("\nserve it:")
        for command in exported.commands:
            print(f"  {visible(command)}")
    if pushed:
        _show_push(exported, pushed)


def finding_line(finding: Finding) -> str:
    return f"{'ok  ' if finding.ok else 'FAIL' if finding.verified else 'open'}  {visible(finding.what)}: {visible(finding.detail)}"


def _show_push(exported: Exported, pushed: dict[str, Any]) -> None:
    from lawf_repl.export.hub import TOLD

    kind = "private" if pushed["private"] else "public"
    if pushed["dry_run"]:
        print(f"\ndry run: would upload to the {kind} repository {pushed['repo']}, {sum(size for _, size in exported.files):,} bytes:")
        for name, size in exported.files:
            print(f"  {visible(name)}  {size:,} bytes")
    else:
        print(f"\nuploaded to the {kind} repository {visible(str(pushed['address']))}")
    print(f"note: {TOLD}")
