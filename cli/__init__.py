"""The command line: options -> one library call -> print. Importing it imports no torch."""
