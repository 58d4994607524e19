"""`kick gate`: is a candidate shown to match its reference? A policy file in, an exit code out."""
