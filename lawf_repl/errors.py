"""The errors that lawf raises on purpose. Each message is one line: what was expected, what was found, what to do."""

from __future__ import annotations


class LawfError(Exception):
    """Base of all errors that a user can cause or meet; the command line prints the message and exits with `exit_code`."""

    exit_code = 2


class UsageError(LawfError):
    """A flag, a setting or an argument is wrong."""


class ModelError(LawfError):
    """A model, tokenizer or adapter cannot be loaded or served."""


class PromptError(LawfError):
    """A prompt is empty, malformed or longer than the model's context."""


class FixError(LawfError):
    """A correction cannot be made: text not found, a fix that cannot be tokenized, a position outside the answer."""


class NothingToFix(LawfError):
    """The correction asks for what already stands there."""

    exit_code = 0


class TrainingError(LawfError):
    """Training cannot start: no anchors, or anchors that contradict each other."""


class SessionError(LawfError):
    """A session file cannot be read, locked or written."""


class ExportError(LawfError):
    """An adapter cannot be exported to what was asked for: a base, an architecture or a format that does not allow it, or a place."""


class OutOfMemory(LawfError):
    """The device ran out of memory; what was collected so far is kept."""


class Stopped(Exception):
    """Somebody asked for it to stop: no error, and nothing to say to the user. Never leaves the part that is stopped."""


def first_line(error: BaseException, most: int = 160) -> str:
    """What an error of a library says, as part of a one-line message; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:most]
