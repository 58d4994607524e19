"""Prune the built-in model with one recipe and ask both the same questions: the Python API in one screen.

python examples/one_recipe.py [RECIPE] [QUESTIONS]
"""

import sys

import llmkick


def main(recipe: str = "wanda@0.25", questions: int = 40) -> None:
    model = llmkick.load_model("smollm2-135m-instruct")
    calibration = llmkick.calibrate(model, sequences=8, length=128)
    pruned, report = llmkick.compress(model, recipe, calibration=calibration)
    print(f"{recipe}: {report.realised_sparsity:.1%} of the weights are zero")

    task = llmkick.get_task("factoid_qa", limit=questions)
    dense, compressed = llmkick.evaluate(model, task), llmkick.evaluate(pruned, task)
    found = llmkick.compare(
        {record.item_id: record.score for record in dense},
        {record.item_id: record.score for record in compressed},
        strata={record.item_id: record.cluster for record in dense},  # fixed groups, as `task.groups` says
    )
    print(f"dense {found.dense:.2f}, compressed {found.compressed:.2f}: {found.verdict}")
    for item, before, after in zip(task.items(), dense, compressed, strict=True):
        if before.score == 1 and after.score == 0:
            print(f"lost: {item.question}\n   dense      {before.response}\n   compressed {after.response}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
