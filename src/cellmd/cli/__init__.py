"""The shell: parse, call the API, print. Answers go to stdout, everything else to stderr."""
