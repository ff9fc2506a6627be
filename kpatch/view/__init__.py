"""Everything that shows something: tables and texts of plans and edits."""
