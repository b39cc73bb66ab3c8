"""A tokenizer trained on the same text is the same tokenizer, in any process: else no run could be repeated
elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TRAIN = """
import random, sys
from pathlib import Path
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.modeling.tokenizer import train_tokenizer
draw = random.Random(0)
texts = ["".join(draw.choices("abcdefghij klmnop", k=60)) for _ in range(300)]
print(train_tokenizer(iter(texts), TokenizerTraining(vocab_size=600), "encoder", "key", Path(sys.argv[1]), 32).name)
"""


def test_training_twice_gives_the_same_tokenizer(tmp_path: Path) -> None:
    names = {
        subprocess.run(
            [sys.executable, "-c", _TRAIN, tmp_path / side], capture_output=True, text=True, check=True
        ).stdout
        for side in "ab"
    }
    assert len(names) == 1  # the folder is named by the hash of the tokenizer's files
