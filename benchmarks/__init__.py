"""What is fast, and how fast: scripts that print a table and write JSON. Nothing here is a test."""
