"""What long commands share: run folders, files, resuming, progress, tables and figures. No mathematics."""
