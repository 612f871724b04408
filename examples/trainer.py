"""Train to a size of file with the Trainer of Hugging Face, and load the compressed folder.

pip install 'backslash-rdo[integrations]' && python examples/trainer.py

A small BERT learns whether a sequence holds one word more often than another; replace model and data by yours.
"""

from __future__ import annotations

import argparse

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from rdo.integrations.transformers import RateCallback


def examples(count: int) -> list[dict[str, object]]:
    ids = torch.randint(0, 50, (count, 16))
    return [{"input_ids": row, "labels": int((row < 25).sum() > 8)} for row in ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--out", default="trainer-example")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, max_position_embeddings=16))
    # From random weights, so the loss sees rounded ones early; a pretrained model is better left to the default.
    callback = RateCallback(bits_per_parameter=4.0, save_to=f"{arguments.out}-rdo", target_options={"start": 20})
    settings = TrainingArguments(
        output_dir=arguments.out, num_train_epochs=1, learning_rate=1e-3, logging_steps=20, save_steps=50
    )
    trainer = Trainer(model=model, args=settings, train_dataset=examples(arguments.examples), callbacks=[callback])
    trainer.train(resume_from_checkpoint=RateCallback.last_checkpoint(arguments.out))

    loaded = AutoModelForSequenceClassification.from_pretrained(f"{arguments.out}-rdo")
    print(f"{arguments.out}-rdo holds {sum(p.numel() for p in loaded.parameters()):,} parameters")


if __name__ == "__main__":
    main()
