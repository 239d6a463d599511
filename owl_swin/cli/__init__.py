"""The command line. Results go to stdout, progress and logs to stderr; errors are one sentence and exit code 2."""
