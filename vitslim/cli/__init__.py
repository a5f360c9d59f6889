"""The command line: words into the pipeline; bars and colours live only here."""
