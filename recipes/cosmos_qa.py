# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Runs weak-to-strong generalization on CosmosQA: questions about a blog entry, each with a right and a wrong answer.

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/cosmos_qa.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/cosmos_qa.py --config single_gpu

Your own models and a local copy of the rows:

    accelerate launch recipes/cosmos_qa.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/cosmos_qa
"""

from w2s_hf.cli import recipe

if __name__ == "__main__":
    recipe("cosmos_qa", __doc__)
