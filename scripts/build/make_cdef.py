#!/usr/bin/env python3
"""Derive the cffi binding from the engine's and our own public headers, at build time.

Nothing of the headers is copied by hand: a field that is added to a struct is there after the next build. The
headers' preprocessor lines are few, and a directive that this script does not know is an error, never skipped.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

DIRECTIVE = re.compile(r"^\s*#\s*(\w+)\s*(.*?)\s*$")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# What the headers may ask about the platform; cdefs are written for a C compiler on any of them.
UNDEFINED = {"_WIN32", "__CYGWIN__", "__cplusplus", "SD_BUILD_SHARED_LIB", "SD_BUILD_DLL"}
CALLBACKS = """
extern "Python" void sdcpp_py_log(enum sd_log_level_t level, const char* text, void* data);
extern "Python" void sdcpp_py_progress(const sdcpp_progress_t* progress, void* data);
extern "Python" bool sdcpp_py_poll(void* data);
extern "Python" void sdcpp_py_tap(const char* phase, const int64_t* ne, const float* values, void* data);
extern "Python" const char* sdcpp_py_text(const char* form, const char* text, void* data);
extern "Python" void sdcpp_py_picture(const sd_image_t* picture, void* data);
extern "Python" void sdcpp_py_preview(int step, int frame_count, sd_image_t* frames, bool is_noisy, void* data);
"""


class HeaderError(Exception):
    """A header holds something that cannot be turned into a cdef; the message names file and line."""


def condition(directive: str, text: str, where: str) -> bool:
    """Return the truth of an #if, #ifdef or #ifndef over macros that are known to be undefined."""
    if directive in ("ifdef", "ifndef"):
        known = text in UNDEFINED or text.endswith(("_H", "_H__"))
        if not known:
            raise HeaderError(f"{where}: #{directive} of unknown macro {text!r}")
        return directive == "ifndef"
    if match := re.fullmatch(r"defined\((\w+)\)(?: \|\| defined\((\w+)\))*", text):
        names = re.findall(r"defined\((\w+)\)", match.group())
        if all(name in UNDEFINED for name in names):
            return False
    if text == "__GNUC__ >= 4":
        return True
    raise HeaderError(f"{where}: cannot evaluate #{directive} {text}")


def declarations(text: str, name: str) -> str:
    """Return a header's declarations as cffi reads them: no comments, directives, export macros or linkage.

    Args:
        text: the header's text.
        name: the header's name for error messages.

    Raises:
        HeaderError: a directive or a condition that is not known here.
    """
    text = COMMENT.sub(lambda match: "\n" * match.group().count("\n"), text)
    kept: list[str] = []
    active: list[bool] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{name}:{number}"
        match = DIRECTIVE.match(line)
        if match is None:
            if all(active):
                kept.append(line)
            continue
        directive, rest = match.groups()
        if directive in ("if", "ifdef", "ifndef"):
            active.append(condition(directive, rest, where) if all(active) else False)
        elif directive == "else" and active:
            active[-1] = not active[-1]
        elif directive == "endif" and active:
            active.pop()
        elif (
            directive == "include"
            or not all(active)
            or (directive == "define" and (rest.startswith("SD_API") or re.fullmatch(r"\w+_H(__)?", rest)))
        ):
            continue
        else:
            raise HeaderError(f"{where}: unknown directive #{directive} {rest}".rstrip())
    if active:
        raise HeaderError(f"{name}: {len(active)} #if without #endif")
    return re.sub(r"\bSD_API\s+", "", "\n".join(kept)).strip() + "\n"


def make_cdef(headers: list[Path]) -> str:
    """Return the cdef of all headers, in the order given, without the callbacks that Python implements."""
    return "".join(declarations(path.read_text(encoding="utf-8"), path.name) for path in headers)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Derive the cffi binding from public headers.")
    parser.add_argument("headers", nargs="+", type=Path, help="the headers, each after those it needs")
    parser.add_argument("--module", help="write C source of this extension module")
    parser.add_argument("--output", type=Path, help="file to write; the cdef goes to standard output without it")
    parsed = parser.parse_args(arguments)
    try:
        cdef = make_cdef(parsed.headers)
    except (HeaderError, OSError, UnicodeDecodeError) as error:
        print(f"make_cdef: {error}", file=sys.stderr)
        return 1
    if parsed.output is None or parsed.module is None:
        print(cdef)
        return 0
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(cdef + CALLBACKS)
    includes = "".join(f'#include "{path.name}"\n' for path in parsed.headers)
    ffi.set_source(parsed.module, includes, py_limited_api=True)
    ffi.emit_c_code(str(parsed.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
