"""The contract of every public name: it is documented, with its parameters and an example.

A new module or a new name in an ``__all__`` is picked up by itself.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from dataclasses import is_dataclass

import pyro
import pytest

import pyro_sig

EXAMPLE = re.compile(r"^\s*>>> |^\s*\.\. code-block::|^\s*Examples?::\s*$", re.MULTILINE)


def public_modules():
    """Return the names of all modules without a leading underscore anywhere in their path."""
    names = ["pyro_sig"]
    for info in pkgutil.walk_packages(pyro_sig.__path__, "pyro_sig."):
        if not any(name.startswith("_") for name in info.name.split(".")):
            names.append(info.name)
    return names


def public_objects():
    """Return ``{id: (label, object)}``; an object re-exported elsewhere is listed once."""
    found = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", ()):
            value = getattr(module, attribute, None)
            if inspect.isclass(value) or callable(value):
                found.setdefault(id(value), (f"{name}.{attribute}", value))
    return found


OBJECTS = sorted(public_objects().values(), key=lambda pair: pair[0])
EACH = pytest.mark.parametrize("value", [v for _, v in OBJECTS], ids=[n for n, _ in OBJECTS])


def is_exception(value):
    return inspect.isclass(value) and issubclass(value, BaseException)


def is_record(value):
    """Tell a class that only holds a result: the function that returns it has the example."""
    return inspect.isclass(value) and (is_dataclass(value) or hasattr(value, "_fields"))


def own_docstring(value):
    """Return the docstring written for ``value``, with that of ``__init__`` for a class."""
    text = value.__doc__ or ""
    if inspect.isclass(value):
        text += "\n" + (
            vars(value).get("__init__").__doc__ or "" if "__init__" in vars(value) else ""
        )
    return inspect.cleandoc(text)


def parameters(value):
    """Return the parameters that a caller names, but for what every distribution takes."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name
        for p in inspect.signature(value).parameters.values()
        if p.kind not in variadic and p.name != "validate_args" and not p.name.startswith("_")
    ]


@pytest.mark.parametrize("name", public_modules())
def test_module(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), "a module says what it holds"
    assert hasattr(module, "__all__"), "a public module has an __all__"
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert not missing
    assert len(set(module.__all__)) == len(module.__all__)


@EACH
def test_summary(value):
    lines = inspect.cleandoc(value.__doc__ or "").splitlines()
    assert lines, "no docstring"
    assert lines[0].endswith("."), f"the summary is one line that ends in a period: {lines[0]!r}"


@EACH
def test_example(value):
    if is_exception(value) or is_record(value):
        pytest.skip("an exception or a record needs no example")
    assert EXAMPLE.search(own_docstring(value)), "no example (`>>>` or `.. code-block::`)"


@EACH
def test_parameter_fields(value):
    if is_exception(value):
        pytest.skip("an exception is raised, not called")
    text = own_docstring(value)
    missing = [
        name
        for name in parameters(value)
        if not re.search(rf":(param|ivar|var)\s+([^:\n]*\s)?{re.escape(name)}:", text)
    ]
    assert not missing, f"without a `:param:` field: {missing}"


@EACH
def test_public_methods(value):
    if not inspect.isclass(value) or not value.__module__.startswith("pyro_sig"):
        pytest.skip("not a class of this package")
    missing = [
        name
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (
            inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
        )
        and not (inspect.getdoc(getattr(value, name)) or "").strip()
    ]
    assert not missing, f"without a docstring: {missing}"


def instances(cls, patch):
    """Return what is made of a class, or of subclasses, where its own example is run."""
    made = []
    init = cls.__init__

    def record(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    patch.setattr(cls, "__init__", record)
    names = dict(vars(sys.modules[cls.__module__]))
    example = doctest.DocTestParser().get_doctest(own_docstring(cls), names, "", None, None)
    doctest.DocTestRunner().run(example, out=lambda text: None, clear_globs=False)
    return made


@EACH
def test_repr(value, monkeypatch, tmp_path):
    if not inspect.isclass(value) or is_exception(value):
        pytest.skip("not a class of objects")
    if value.__repr__ is not object.__repr__ and (is_record(value) or "nn" in value.__module__):
        pytest.skip("made by Python or torch")
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    assert value.__repr__ is not object.__repr__, "`__repr__ = show_settings` is enough"
    for instance in instances(value, monkeypatch):
        assert "object at 0x" not in repr(instance)
