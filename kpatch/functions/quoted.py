"""Decides, once and before all other steps, which strings of a parsed statement are names."""

from kpatch.functions import TABLE
from kpatch.syntax import ast


def with_names(node):
    """The tree with each string replaced by a quoted name, except for parameters that take a string.

    Example:
        >>> from kpatch.syntax import parse
        >>> tree = with_names(parse('bias = mean("encoder/bias") + cast(1, "int8")'))
        >>> [type(found).__name__ for found in ast.walk(tree) if isinstance(found, (ast.Reference, ast.String))]
        ['Reference', 'String']
    """
    strings = any(type(part) is ast.String for part in ast.walk(node))
    return ast.mapped(node, _named) if strings else node


def _named(node):
    if type(node) is not ast.Call or node.function not in TABLE:  # an unknown function fails later
        return node
    takes_string, arguments = TABLE[node.function].takes_string, []
    for place, argument in enumerate(node.arguments):
        if type(argument.value) is ast.String and not takes_string(argument.name or place):
            argument = ast.Argument(argument.name, argument.value.reference, argument.span)
        arguments.append(argument)
    return ast.Call(node.function, tuple(arguments), node.span)
