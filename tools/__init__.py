"""The command line. Start reading in README.md."""
