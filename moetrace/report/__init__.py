"""Facts to readable output: plain rows, the terminal, a timeline, the schema page; one file for each."""
