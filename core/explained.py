"""What each key of the configuration means: the docstring beside its field, which Python does not keep at run time."""

import ast
import inspect
from dataclasses import is_dataclass
from typing import get_args, get_type_hints


def explained(kind: type) -> dict[str, str]:
    """Dotted key -> explanation, for the fields of a configuration dataclass and of the groups within it.

    A group without a docstring beside its field is explained by the first paragraph of its class. Where a field is one
    of several groups, such as a scorer's, the keys of all are there.
    """
    beside, found = _beside_fields(kind), dict[str, str]()
    for name, hint in get_type_hints(kind).items():
        groups = [option for option in (hint, *get_args(hint)) if is_dataclass(option) and isinstance(option, type)]
        of_class = (inspect.getdoc(groups[0]) or "").split("\n\n")[0] if len(groups) == 1 else ""
        found[name] = beside.get(name, of_class)
        for group in groups:
            found |= {f"{name}.{key}": text for key, text in explained(group).items()}
    return found


def _beside_fields(kind: type) -> dict[str, str]:
    """Field -> the string right below it in the source of the class."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = inspect.cleandoc(text)
    return texts
