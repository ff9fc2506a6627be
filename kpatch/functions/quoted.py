"""Which strings of a patch are names: decided here, once, before anything else looks at a parsed statement."""

from kpatch.functions import TABLE
from kpatch.syntax import ast


def with_names(node):
    """The tree in which strings are left only where a function takes a string; elsewhere they are quoted names.

    Example:
        >>> from kpatch.syntax import parse
        >>> tree = with_names(parse('bias = mean("encoder/bias") + cast(1, "int8")'))
        >>> [type(found).__name__ for found in ast.walk(tree) if isinstance(found, (ast.Reference, ast.String))]
        ['Reference', 'String']
    """
    strings = any(type(part) is ast.String for part in ast.walk(node))
    return ast.mapped(node, _named) if strings else node


def _named(node):
    if type(node) is not ast.Call or node.function not in TABLE:  # of no function: the error will be about that
        return node
    takes_string, arguments = TABLE[node.function].takes_string, []
    for place, argument in enumerate(node.arguments):
        if type(argument.value) is ast.String and not takes_string(argument.name or place):
            argument = ast.Argument(argument.name, argument.value.reference, argument.span)
        arguments.append(argument)
    return ast.Call(node.function, tuple(arguments), node.span)
