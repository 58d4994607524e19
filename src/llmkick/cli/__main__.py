"""`python -m llmkick.cli`."""

from llmkick.cli import main

if __name__ == "__main__":
    main()
