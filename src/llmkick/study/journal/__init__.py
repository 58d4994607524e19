"""The journal of a run: a SQLite file that stores every record as soon as it exists."""
