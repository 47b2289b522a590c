"""Uploading a verified export with huggingface_hub: only where it is asked for, private unless told, and listed first with a dry run.

The token is huggingface_hub's own (`hf auth login` or HF_TOKEN): lawf neither reads nor prints it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from lawf_repl.errors import ExportError, UsageError, first_line

TOLD = "README.md and lawf.json hold the corrected prompts and answers"


def check_repo(repo: str, flag: str = "--push-to-hub") -> None:
    """Raise UsageError for what is no OWNER/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{flag} {repo!r}: expected OWNER/NAME ({first_line(error)})") from error
    if repo.count("/") != 1:
        raise UsageError(f"{flag} {repo!r}: expected OWNER/NAME")


def listing(out: Path) -> list[tuple[str, int]]:
    """Names and bytes of what would go, in order; the same files that `push` uploads."""
    return sorted((path.relative_to(out).as_posix(), path.stat().st_size) for path in out.rglob("*") if path.is_file())


def push(out: Path, repo: str, public: bool) -> str:
    """Create the repository where it does not exist, upload the folder in one commit; returns its address. Raises ExportError."""
    api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # None is the hub itself
    try:
        created = api.create_repo(repo, private=not public, exist_ok=True)  # one that exists stays as public as it is
        seen_by_all = not public and api.model_info(repo).private is not True
        if not seen_by_all:
            api.upload_folder(repo_id=repo, folder_path=str(out), commit_message="Adapter exported by lawf")
    except Exception as error:  # the client raises errors of several libraries
        raise ExportError(f"{out} is written and verified, but could not be uploaded to {repo}: {first_line(error)}; "
                          "check the name, the network and hf auth whoami") from error
    if seen_by_all:
        raise ExportError(f"{out} is written and verified, but not uploaded: {repo} is not private, and {TOLD}; pass --public if that is meant")
    return str(created)
