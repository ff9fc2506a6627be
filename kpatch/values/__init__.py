"""Values while a patch is planned and run: their dtypes, the operators, and the operations that backends differ in."""
