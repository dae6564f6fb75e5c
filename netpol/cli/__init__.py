"""The command line: a file a command, each importing what it needs when it runs."""
