"""Everything that crosses a boundary between the parts. A leaf: imports pydantic and nothing of ours."""
