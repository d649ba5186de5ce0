"""Questions about tables, and their answers. May import `alerts`, `limits` and below, and the view."""
