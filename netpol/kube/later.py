"""Imports of another package, put off until somebody uses what they give.

A package may import at its start what few of its users need, and what is imported once stays in memory. From Python 3.15 on whoever
imports a package can ask for that to wait (PEP 810, with a filter); this is the part of it that we need, made of the import system's own
hooks: a finder that is there as long as the package is being imported.

- `import x` of a module that is put off gives importlib's lazy module, which is read when one of its attributes is looked up.
- `from x import y` looks one up. So for names that are put off the module is a stand-in, and the name a `_Later`, which may be called,
  asked for attributes, derived from and compared with as a class, and imports the module for that. Not so where it is subscripted, as
  annotations are, nor asked whether it is an object's class as long as the module is not there, since no object has a class that nobody
  has read. The stand-in itself is gone from `sys.modules` when the package is imported: everybody else gets the real module.

Invariants: what is in use is what would be there without this module, only later; a module or name that the package does not import, or
that is not installed, or that was imported before, is as if it was not named here; any other name of a stand-in imports the real
module at once. A name is one of the module's own, or of a module below it: one that stands elsewhere may have objects without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any


@contextmanager
def put_off(modules: Sequence[str], names: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """What is imported in this context imports `modules`, and the `names` of others, only when they are used."""
    finder = _Finder(modules, names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in names:
            finder.forget(module)


class _Finder(MetaPathFinder):
    def __init__(self, modules: Sequence[str], names: Mapping[str, Sequence[str]]) -> None:
        self._modules, self._names = set(modules), dict(names)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self._modules and fullname not in self._names:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.loader is None:
            return None
        if fullname in self._modules:
            found.loader = LazyLoader(found.loader)
            return found
        spec = ModuleSpec(fullname, _StandInLoader(self, self._names[fullname]), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def real(self, name: str) -> ModuleType:
        """The module that a stand-in stands for, imported."""
        self.forget(name)
        return import_module(name)

    def later(self, module: str, name: str) -> _Later:
        """A name of a module that is imported when it is used."""
        return _Later(lambda: getattr(self.real(module), name), lambda: not isinstance(sys.modules.get(module), _StandIn | None))

    def forget(self, name: str) -> None:
        """From now on the real module is imported under this name, whoever has a stand-in for it."""
        self._names.pop(name, None)
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _StandInLoader(Loader):
    def __init__(self, finder: _Finder, names: Sequence[str]) -> None:
        self._finder, self._names = finder, names

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, self._finder, self._names)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


class _StandIn(ModuleType):
    """A module whose names are looked up in the real one: those that are put off when they are used, any other at once."""

    def __init__(self, name: str, finder: _Finder, names: Sequence[str]) -> None:
        super().__init__(name)
        self._finder, self._names = finder, names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)
        return self._finder.later(self.__name__, name) if name in self._names else getattr(self._finder.real(self.__name__), name)


class _Later:
    """A function or class of a module that is imported when this is used. there -- whether the module is imported."""

    def __init__(self, real: Callable[[], Any], there: Callable[[], bool]) -> None:
        self._real, self._there = real, there

    def __call__(self, *arguments: object, **options: object) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__typing_", "__parameters__")):  # what `typing` asks of a part of an annotation
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __getitem__(self, item: Any) -> _Later:
        return _Later(lambda: self._real()[item._real() if type(item) is _Later else item], self._there)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return self._there() and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._there() and issubclass(subclass, self._real())

    def __or__(self, other: Any) -> Any:
        return self._real() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._real()
