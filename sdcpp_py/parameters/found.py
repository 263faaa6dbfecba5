"""What is found in a picture, and how options are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArgumentError
from ..modes import DRAWING, FILMING, LOADING, Mode
from ..options.declare import Option, declared
from ..options.group import Grouped

MODES = {mode.name: mode for mode in (*DRAWING, *FILMING)}


class Parameters(Mapping[str, Any]):
    """The options of one picture, by name, and what else it says.

    Args:
        options: option -> value, as the mode's method takes them.
        mode: name of that method: ``txt2img``, ``img2img``, ...
        source: whose text it is: ``sdcpp-py``, ``AUTOMATIC1111``, ``ComfyUI`` or ``InvokeAI``.
        loading: options of :class:`sdcpp_py.StableDiffusion` that change pixels.
        needs: options that no text can hold: the pictures that went in.
        about: what it says of itself, such as ``Model`` and ``Version``.
        unmapped: name -> text of what has no equal among the options, or a value that they do not take.
        text: as it stands in the file.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        mode: str,
        source: str,
        loading: Mapping[str, Any],
        needs: tuple[str, ...],
        about: Mapping[str, str],
        unmapped: Mapping[str, str],
        text: str,
    ) -> None:
        self._options = dict(options)
        self.mode = mode
        self.source = source
        self.loading = dict(loading)
        self.needs = needs
        self.about = dict(about)
        self.unmapped = dict(unmapped)
        self.text = text

    def __getitem__(self, name: str) -> Any:
        """Return the value of an option."""
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the options."""
        return iter(self._options)

    def __len__(self) -> int:
        """Return the number of options."""
        return len(self._options)

    def __repr__(self) -> str:
        """Return the options, and whose they are."""
        return f"<Parameters of {self.source}, {self.mode}: {self._options}>"

    def __str__(self) -> str:
        """Return lines of text."""
        content = self.to_dict()
        rows = [("mode", f"{self.mode} (by {self.source})"), *content["options"].items()]
        rows += [(f"loading {name}", value) for name, value in content["loading"].items()]
        rows += [("needs", f"{name}=, a picture that went in") for name in self.needs]
        rows += [*self.about.items(), *((f"not mapped: {name}", text) for name, text in self.unmapped.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        known = MODES[self.mode].declared
        return {
            "source": self.source,
            "mode": self.mode,
            "options": {name: known[name].kind.plain(value) for name, value in self._options.items()},
            "loading": dict(self.loading),
            "needs": list(self.needs),
            "about": dict(self.about),
            "unmapped": dict(self.unmapped),
        }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return " ".join(str(value).split())


class Found:
    """Gathers what a picture says, value by value; what no option takes is kept as text.

    Args:
        mode: whose options are meant.
        source: as of Parameters.
        text: as it stands in the file.
    """

    def __init__(self, mode: Mode, source: str, text: str) -> None:
        self.mode = mode
        self.about: dict[str, str] = {}
        self.unmapped: dict[str, str] = {}
        self._source, self._text = source, text
        self._values: dict[str, Any] = {}
        self._loading: dict[str, Any] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._said: dict[str, dict[str, str]] = {}
        self.also_given: list[str] = []

    def add(self, path: tuple[str, ...], value: Any, name: str, text: str | None = None) -> None:
        """Note the value of an option, or of a group's field.

        Args:
            path: name of the option, and of the field.
            value: of the type that it takes.
            name: what the picture calls it.
            text: what the picture says; by default the value itself.
        """
        said = str(value) if text is None else text
        option, *field = path
        if option not in self.mode.declared:
            self.unmapped[name] = said
        elif field:
            self._groups.setdefault(option, {})[field[0]] = value
            self._said.setdefault(option, {})[name] = said
        else:
            self._take(self._values, self.mode.declared[option], value, name, said)

    def add_loading(self, option: str, value: Any, name: str, text: str | None = None) -> None:
        """Note the value of an option of loading."""
        self._take(self._loading, LOADING.declared[option], value, name, str(value) if text is None else text)

    def _take(self, into: dict[str, Any], option: Option, value: Any, name: str, said: str) -> None:
        try:
            into[option.name] = option.check(value)
        except ArgumentError:
            self.unmapped[name] = said

    def parameters(self) -> Parameters:
        """Return what was gathered."""
        for name, fields in self._groups.items():
            kind = self.mode.declared[name].kind
            assert isinstance(kind, Grouped)
            try:
                self._values[name] = kind.owner(**fields)
            except (ArgumentError, TypeError):  # a field that is none, or without what pictures cannot carry
                self.unmapped |= self._said[name]
        subject = declared(self.mode.subject)
        needs = [name for name in subject if name != "prompt"]
        if "control_strength" in self._values or "canny" in self._values:
            needs.append("control_image")
        needs += [name for name in self.also_given if name in self.mode.declared and name not in needs]
        order = [name for name in self.mode.declared if name in self._values]
        return Parameters(
            {name: self._values[name] for name in order},
            mode=self.mode.name,
            source=self._source,
            loading=self._loading,
            needs=tuple(needs),
            about=self.about,
            unmapped=self.unmapped,
            text=self._text,
        )
