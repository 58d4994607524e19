"""Answers of vLLM, which runs in this process: references of the form `vllm:PATH`."""
