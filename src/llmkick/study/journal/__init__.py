"""The journal: every record of a run, in SQLite, as soon as it exists."""
