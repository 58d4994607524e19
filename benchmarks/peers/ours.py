"""Our walk as a contender."""

from common import check_dense, hand_back, linears, load_tokens, read_job, timed

import llmkick


def main() -> None:
    job = read_job()
    model = llmkick.load_model(job["folder"], dtype=job["dtype"])
    check_dense(model.network, job)
    tokens = load_tokens(job)
    seconds, (compressed, _) = timed(lambda: llmkick.compress(model, job["recipe"], calibration=tokens))
    weights = {name: layer.weight for name, layer in linears(compressed.network).items()}
    hand_back(job, seconds, weights, ("torch", "transformers"))


if __name__ == "__main__":
    main()
