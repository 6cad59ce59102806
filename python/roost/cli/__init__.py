"""The `roost` command line. Every command imports what it needs when it runs, so that `roost --help` stays fast."""
