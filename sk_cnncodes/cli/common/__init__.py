"""What several commands share: arguments, options, tables, exit codes, the report."""
