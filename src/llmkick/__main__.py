"""`python -m llmkick`, and `torchrun -m llmkick`."""

from llmkick.cli import main

if __name__ == "__main__":
    main()
