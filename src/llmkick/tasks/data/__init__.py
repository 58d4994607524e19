"""The sources of task data: pocket files, the hub and local folders."""
