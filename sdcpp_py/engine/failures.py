"""What a failed call is told as: one line for people. The engine's own words stay in the log."""

from __future__ import annotations

import re

from ..errors import ArgumentError, DeviceMemoryError, ModelError, OutputError, SdcppError

# Words of ours begin with whose fault it is.
_SUBJECTS: dict[str, type[SdcppError]] = {
    "LoRA: ": ModelError,
    "target: ": OutputError,
    "the model's files hold no ": ModelError,
    "weights on disk: ": ModelError,
    "prompt: ": ArgumentError,
    "negative_prompt: ": ArgumentError,
    "tensor_type_rules: ": ArgumentError,
}
# What names of functions, types and source files look like, and the texts of C++'s own exceptions.
_INTERNAL = re.compile(
    r"""::|\bstd\b|\bjson\b|C\+\+|GGML_|ggml_|0x[0-9a-f]{3}|\w\(\)|_M_
    |\.(c|cc|cpp|h|hpp|cu|cuh|inl)\b
    |^(sto\w+|map|vector|deque|basic_string|bad_\w+|invalid_\w+|regex\w*|length_error|out_of_range|OrderedMap|filesystem)\b
    |^type\ .*unsupported|^(read|incomplete|failed\ to\ open)\ tensor\b|^tensor\ (out\ of|file)|^unknown\b""",
    re.VERBOSE,
)
_NO_MEMORY = re.compile(
    r"bad_alloc|length_error|vector::|_M_create|alloc\w* .*buffer failed|failed to allocate|insufficient memory"
    r"|too less memory|cannot allocate",
    re.IGNORECASE,
)
# What the engine says of a file that was read well a moment ago.
_FILE_LINES = re.compile(
    r"(?:read tensor data failed|incomplete file|failed to open(?: zip)?|loader from file failed|from file failed):? "
    r"'(?P<path>[^']+)'"
)
NO_MEMORY = "there is not enough memory; free some of it, or ask for less: a smaller picture, fewer of them, tiles"


def is_plain(text: str) -> bool:
    """Tell whether a text is for people: not empty, of one line, and without the insides of a program."""
    return bool(text) and "\n" not in text and _INTERNAL.search(text) is None


def failure(
    said: str, lines: tuple[str, ...], kind: type[SdcppError], message: str, *, closed: bool = False
) -> SdcppError:
    """Return the error of a call that failed.

    Args:
        said: the text of the check or the exception that ended it; empty where the engine gave up by itself.
        lines: the last warnings and errors of the call.
        kind: the error of such a call.
        message: what it says where nothing better is known.
        closed: the failure has closed the model.
    """
    for subject, own in _SUBJECTS.items():
        if said.startswith(subject) and "\n" not in said:
            return own(said, lines)
    again = "; the model is closed now: load it again" if closed else ""
    if is_plain(said):
        return kind(f"{said}{again}", lines)
    if any(_NO_MEMORY.search(line) for line in (said, *lines)):
        return DeviceMemoryError(f"{NO_MEMORY}{again}", lines)
    for line in lines:
        if found := _FILE_LINES.search(line):
            path = found["path"]
            return ModelError(f"{path} cannot be read any more; was it changed or moved meanwhile?{again}", lines)
    return kind(f"{message}{again}", lines)
