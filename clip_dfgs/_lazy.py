"Public names of a package, each fetched from its module when it is first asked for."
import sys
from importlib import import_module


def lazy(package, **modules):
    "`__getattr__`, `__dir__` and `__all__` of a package, from `module='name name ...'` (a double underscore is a dot)."
    homes = {name: module.replace('__', '.') for module, names in modules.items() for name in names.split()}

    def fetch(name):
        if name not in homes: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        value = getattr(import_module(f'{package}.{homes[name]}'), name)
        setattr(sys.modules[package], name, value) # also where a module has the name of what it holds
        return value
    return fetch, lambda: sorted(homes), list(homes)


class later:
    "A module that is imported when something of it is first used."
    def __init__(self, name): self.__name__ = name

    def __getattr__(self, name): return getattr(import_module(self.__name__), name)
