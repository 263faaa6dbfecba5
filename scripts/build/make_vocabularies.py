#!/usr/bin/env python3
"""Write the engine's vocabularies as binary files and a source that includes them as such.

The engine has them as lists of bytes, 130 MB of text, which take a compiler longer than all networks together. The
source written here is the engine's vocab.cpp with those lists taken from binary files by the assembler instead.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ARRAY = re.compile(r"static const unsigned char (\w+)\[\] = \{([^}]*)\};")
INCLUDE = re.compile(r'#include "(\w+\.hpp)"\n')
TEMPLATE = """\
__asm__(".pushsection .rodata\\n.balign 16\\n{label}:\\n.incbin \\"{path}\\"\\n.popsection\\n");
extern const unsigned char {name}[{size}] __asm__("{label}") __attribute__((visibility("hidden")));
"""


def make_vocabularies(source: Path, out: Path) -> None:
    """Write the source OUT for the engine's vocab.cpp, and a file for each array beside it.

    Raises:
        ValueError: A header is not made of arrays of bytes alone.
    """

    def included(match: re.Match[str]) -> str:
        text = (source.parent / match[1]).read_text()
        if ARRAY.sub("", text).strip():
            raise ValueError(f"{match[1]} holds more than arrays of bytes: teach {Path(__file__).name} to read it")
        lines = []
        for name, body in ARRAY.findall(text):
            data = bytes.fromhex(body.replace("0x", "").replace(",", ""))
            path = out.parent.resolve() / f"{name}.bin"
            path.write_bytes(data)
            lines.append(TEMPLATE.format(label=f"sdcpp_{name}", name=name, size=len(data), path=path.as_posix()))
        return "".join(lines)

    out.write_text(INCLUDE.sub(included, source.read_text()))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the engine's vocab.cpp")
    parser.add_argument("out", type=Path, help="the source to write")
    arguments = parser.parse_args()
    try:
        make_vocabularies(arguments.source, arguments.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
