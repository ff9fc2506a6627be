"""From names to variables: selectors, bindings, and patches in all accepted forms."""
