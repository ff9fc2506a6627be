"""Values of expressions: dtypes, operators, and the operations that differ between backends."""
