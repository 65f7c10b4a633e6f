"""Run by test_distributed.py on one and on two ranks: trains and predicts, and writes what rank 0 saw."""

import json
import os
import sys
from pathlib import Path

from accelerate.utils import gather_object
from conftest import make_character_tokenizer, make_language_model, make_model, make_rows, make_tokenizer
from test_reward_pair import make_pairs
from test_reward_pair import train as train_pairs
from test_trainer import arguments, train

from w2s_hf import WeakToStrongTrainer
from w2s_hf.generation import complete


def cut_alike(directory: Path, cut: dict, trajectories: dict) -> list[list[int]]:
    """Forward passes of both ranks where each cuts as it likes, and where all must make as many, as under FSDP."""
    n_passes = []
    for name, alike in (("tokens", False), ("tokens, cut alike", True)):
        WeakToStrongTrainer._ranks_cut_alike = property(lambda self, alike=alike: alike)
        model, passes = make_model("llama"), []
        model.register_forward_hook(lambda *args, passes=passes: passes.append(1))
        _, trajectory = train(model, make_tokenizer(), directory / name, **cut)
        trajectories[f"xent {name}"] = trajectory.tolist()
        n_passes.append(gather_object([len(passes)]))
    return n_passes


def main(output: Path) -> None:
    import torch.distributed as dist
    from accelerate import PartialState

    from w2s_hf.losses import LOSS_TYPES

    state = PartialState(cpu=True)
    world = state.num_processes
    result = {"world": world, "trajectories": {}}
    cuts = {
        "whole": {"per_device_train_batch_size": 8 // world},
        "accumulated": {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2},
        # Ranks cut their rows differently: the row lengths differ.
        "tokens": {"per_device_train_batch_size": 8 // world, "max_tokens_per_micro_batch": 40},
    }
    pair_cuts = {**cuts, "tokens": {**cuts["tokens"], "max_tokens_per_micro_batch": 120}}
    if world == 1:  # there, test_trainer.py and test_reward_pair.py compare the cuts
        cuts = pair_cuts = {"whole": cuts["whole"]}
    for loss_type in LOSS_TYPES:
        for name, cut in cuts.items():
            _, trajectory = train(
                make_model("llama"),
                make_tokenizer(),
                output.parent / f"{loss_type}-{name}",
                loss_type=loss_type,
                aux_warmup_ratio=0.5,
                window_radius=0.3,
                **cut,
            )
            result["trajectories"][f"{loss_type} {name}"] = trajectory.tolist()
    if world > 1:
        result["alike"] = cut_alike(output.parent, cuts["tokens"], result["trajectories"])
    # A remainder batch: 21 rows in batches of 4 a rank.
    trainer = WeakToStrongTrainer(
        model=make_model("llama"),
        args=arguments(output.parent, per_device_eval_batch_size=4),
        processing_class=make_tokenizer(),
    )
    result["predictions"] = trainer.predict_proba(make_rows(21, labels="none")).tolist()
    pairs = make_pairs(24, "random")
    for loss_type in ("xent", "confidence"):
        for name, cut in pair_cuts.items():
            options = {"loss_type": loss_type, "aux_warmup_ratio": 0.5, **cut}
            reward_trainer, trajectory = train_pairs(output.parent / f"pairs-{loss_type}-{name}", pairs, **options)
            result["trajectories"][f"pairs {loss_type} {name}"] = trajectory.tolist()
    result["pairs"] = reward_trainer.predict_proba(make_pairs(21, "random", seed=4)).tolist()
    result["seen"] = {}
    for name, one, rows in (
        ("rows", trainer, make_rows(21, "scalar")),
        ("pairs", reward_trainer, make_pairs(21, "random")),
    ):
        labels = []
        one.compute_metrics = lambda prediction, labels=labels: labels.extend(prediction.label_ids.tolist()) or {}
        one.predict(rows)
        result["seen"][name] = [label[1] if name == "rows" else label for label in labels]
    tokenizer = make_character_tokenizer()
    model = make_language_model(tokenizer).eval()
    prompts = [f"{'abc de ' * (number % 5)}f{number}:" for number in range(21)]
    made = complete(model, tokenizer, prompts, max_new_tokens=6, batch_size=4, keep=output.parent / "kept")
    again = complete(model, tokenizer, prompts, max_new_tokens=6, batch_size=4, keep=output.parent / "kept")
    result["completions"] = [[completion.text, completion.is_cut] for completion in made]
    result["kept"] = again == made and len(list((output.parent / "kept").glob("rank*.jsonl"))) == world
    if state.is_main_process:
        output.write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        # Without a teardown: the models hold their process group, and torch may wait for ever for a thread of gloo
        # when they go after it.
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
