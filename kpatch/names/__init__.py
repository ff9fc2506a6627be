"""From names to variables: which variables a selector means, and what is handed in from Python."""
