"""Display of plans and edits: tables and texts."""
