"""One file a console script; everything they share is in libslo."""
