"""The LLM judge: its prompts, its clients and the parsing of its replies."""
