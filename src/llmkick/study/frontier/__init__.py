"""The search for the strongest compression that still matches."""
