"""The study specification: TOML to a frozen, validated `Study`."""
