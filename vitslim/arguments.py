"""Arguments of public functions, checked against their annotations before the function runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, NotRequired, ParamSpec, Required, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from vitslim.errors import ConfigError
from vitslim.validation import describe_named_errors

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have pydantic hold the arguments of a public function against its annotations, some microseconds a call.

    Models, tensors and other objects are passed on as they are; plain values as pydantic reads them (a list becomes
    the tuple that is wanted). What an annotation names has to exist when the program runs.

    Raises:
        ConfigError: at the call, with everything that is wrong: unknown, missing or unusable arguments.
    """

    @cache
    def reader() -> _Reader:  # made at the first call: importing the package should cost nothing
        return _Reader(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(**reader().read(args, kwargs))  # pyright: ignore[reportCallIssue]

    return call


class _Reader:
    """What reads the arguments of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        named = {name: one for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
        self._takes_options = len(named) < len(parameters)
        self._name = function.__name__.lstrip("_")
        self._by_place = [name for name, one in named.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
        self._kinds = {name: _resolved(one.annotation, function) for name, one in named.items()}
        fields: Any = {
            name: (Required if one.default is one.empty else NotRequired)[self._kinds[name]]
            for name, one in named.items()
        }
        # A typed dict, not a model: any name can be that of an argument, and what is not given stays out.
        make_record: Any = TypedDict  # to pyright this is only ever written out
        record = make_record(self._name, fields)
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, extra="forbid")
        self._adapter: Any = TypeAdapter(with_config(config)(record))

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument that was given, by its name.

        Raises:
            ConfigError: with all that is wrong with them.
        """
        given = {**dict(zip(self._by_place, args, strict=False)), **kwargs}
        if len(given) < len(args) + len(kwargs):
            raise ConfigError(f"{self._name}: {self._misplaced(len(args), kwargs)}")
        # Options have a reader of their own within the function.
        options = {name: value for name, value in given.items() if self._takes_options and name not in self._kinds}
        named = {name: value for name, value in given.items() if name not in options}
        try:
            return self._adapter.validate_python(named) | options
        except ValidationError as error:
            raise ConfigError(f"{self._name}: {'; '.join(describe_named_errors(error, self._kinds))}") from None

    def _misplaced(self, count: int, kwargs: Mapping[str, Any]) -> str:
        twice = [name for name in self._by_place[:count] if name in kwargs]
        if twice:
            return f"{', '.join(twice)} given by place and by name; give each once"
        names = ", ".join(self._by_place)
        return f"{count} arguments without a name; it takes {len(self._by_place)} ({names}), others by name"


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """The type that an annotation names, which is text where annotations are postponed."""
    return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
