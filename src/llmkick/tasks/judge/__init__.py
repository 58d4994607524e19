"""The LLM judge: its prompts, the clients that ask it, the replies it gives."""
