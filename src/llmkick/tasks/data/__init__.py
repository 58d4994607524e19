"""Where task data comes from: pocket files, the hub, local folders."""
