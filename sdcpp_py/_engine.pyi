# The compiled cffi module; its contents are derived from the engine's headers at build time.
from typing import Any

ffi: Any
lib: Any
