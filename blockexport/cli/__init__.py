"""The command line, one file a verb: parse, call, print. A verb imports what it needs when it is called."""
