"""Where weights come from: each family of models reads its own files."""
