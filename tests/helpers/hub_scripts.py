"""Scripts that `test_hub_end_to_end.py` runs in separate processes: `hub_scripts.py NAME FOLDER`."""

import gc
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig

from w2s_hf import (
    CompletionConfig,
    CompletionTrainer,
    RewardPairConfig,
    RewardPairTrainer,
    Score,
    WeakLabels,
    WeakToStrongConfig,
    WeakToStrongTrainer,
    load_student,
)
from w2s_hf.hub import PushError
from w2s_hf.modeling import load_tokenizer

INPUTS = {"input_ids": torch.tensor([[4, 9, 33, 21, 60], [5, 50, 7, 8, 11]]), "attention_mask": torch.ones(2, 5)}
ARGS = {"max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
ARGS |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False}


def logits_of(model: torch.nn.Module) -> list:
    with torch.no_grad():
        return model.eval()(**INPUTS).logits.float().tolist()


def trainers(folder: Path) -> None:
    """Trains a student with each trainer on a 4-bit base model from the Hub, and pushes it."""
    texts = [f"w{index} w{index * 7 % 60} w{index * 3 % 60}" for index in range(8)]
    lora = LoraConfig(r=4, target_modules="all-linear")
    kinds = {
        "classifier": (WeakToStrongTrainer, WeakToStrongConfig, "SEQ_CLS", {"loss_type": "confidence"}),
        "reward": (RewardPairTrainer, RewardPairConfig, "REWARD", {}),
        "whole": (WeakToStrongTrainer, WeakToStrongConfig, "SEQ_CLS", {}),
        "writer": (CompletionTrainer, CompletionConfig, "CAUSAL_LM", {"max_new_tokens": 3}),
    }
    rows = {
        "classifier": {"text": texts, "labels": [index / 8 for index in range(8)]},
        "reward": {"chosen": texts, "rejected": texts[::-1], "soft_label": [index / 8 for index in range(8)]},
        "writer": {"prompt": texts, "completion": [f" w{index}" for index in range(8)]},
    }
    rows["whole"] = rows["classifier"]
    logits = {}
    for name, (trainer_class, config_class, task_type, options) in kinds.items():
        args = config_class(output_dir=str(folder / name), hub_model_id=f"me/{name}", **ARGS, **options)
        lora.task_type = "CAUSAL_LM" if task_type == "CAUSAL_LM" else "SEQ_CLS"
        if name == "whole":
            model = load_student("me/base", dtype="float32")
        else:
            model = load_student("me/base", task_type=task_type, load_in_4bit=True, peft_config=lora)
        data = {"train_dataset": Dataset.from_dict(rows[name]), "processing_class": load_tokenizer("me/base")}
        trainer = trainer_class(model=model, args=args, **data)
        trainer.train()
        trainer.card.task, trainer.card.weak = "spam", Score("me/weak", 0.5, 100)
        trainer.card.student, trainer.card.ceiling = Score("me/base", 0.6, 100), Score("me/base", 0.75, 100)
        if name == "classifier":
            try:
                trainer.push_to_hub(token="hf_of_yesterday", private=True)
            except PushError as error:
                (folder / "refused.txt").write_text(str(error))
        for _ in range(2):
            trainer.push_to_hub(tags="mine")
        logits[name] = logits_of(trainer.model)
    (folder / "trained.json").write_text(json.dumps(logits))


def load(folder: Path) -> None:
    """Loads students and labels from the Hub with the code of the cards."""
    cards = json.loads((folder / "snippets.json").read_text())
    logits = {}
    for name, snippet in cards.items():
        scope: dict = {}
        exec(snippet, scope)
        logits[name] = logits_of(scope["student"])
    (folder / "loaded.json").write_text(json.dumps(logits))
    labels = WeakLabels.from_hub(json.loads((folder / "labels.json").read_text()))
    rows = Dataset.from_dict({"id": labels.ids[::-1], "text": labels.ids[::-1]})
    joined = labels.join(rows)
    (folder / "joined.json").write_text(json.dumps([joined["id"][:], joined["labels"][:]]))


if __name__ == "__main__":
    gc.freeze()  # as the fixture `imported_modules_are_no_garbage` does in the tests
    {"trainers": trainers, "load": load}[sys.argv[1]](Path(sys.argv[2]))
