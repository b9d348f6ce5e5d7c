"""Training steps of Hugging Face's T5 in PyTorch, timed for bench_train.py.

    python bench_t5.py '{"stage": "pretrain", "device": "cpu", "batch": 32, ...}'

It runs in its own environment (requirements-compare.txt) and does not import onesug_jax. It writes
one line of JSON when it is ready. Each input line is a number of steps; the reply has the mean
milliseconds of a step. `"stage": "matmul"` only measures the rate of one float32 matrix product.

A step is the loss, its gradient and torch.optim.AdamW: parameters, moments and loss in float32,
activations in bfloat16 on a GPU, no clipping. `pretrain` uses the model's own loss. `rwr` is the
preference objective without sharing: the request is repeated for each of its 1 + N targets, through
the policy and a frozen reference. torch.compile is used if it works and is faster.
"""

import copy
import json
import os
import sys
import time

import numpy as np
import torch
import transformers
from torch.nn import functional

BETA, DELTA, ALPHA = 0.5, 0.5, 0.4  # PreferenceConfig's defaults
REWARDS = (2.0, 0.5, 0.5, 0.2, 0.0)


def t5(sizes: dict, checkpointing: bool):
    """T5 v1.1 with random weights and, unless tied, a separate head."""
    sizes = dict(sizes)
    tied = sizes.pop("tied")
    config = transformers.T5Config(
        **sizes,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # unscaled outputs, as in v1.1
        decoder_start_token_id=0,
        use_cache=False,
    )
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(0.05 * torch.randn_like(model.shared.weight))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def pretrain_loss(model, tokens, targets):
    """Next-token loss, mean over the tokens of `targets [B, T]`."""
    return model(input_ids=tokens, attention_mask=(tokens > 0).long(), labels=targets).loss


def list_scores(model, tokens, targets):
    """`log pi(q | x)` of `targets [B, C, T]`, with the request repeated for each: `[B, C]`."""
    size, lists, length = targets.shape
    tokens = tokens.repeat_interleave(lists, 0)
    targets = targets.reshape(size * lists, length)
    logits = model(
        input_ids=tokens,
        attention_mask=(tokens > 0).long(),
        decoder_input_ids=functional.pad(targets, (1, 0))[:, :-1],
    ).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return -losses.reshape(size, lists, length).sum(2)


def rwr_loss(model, reference, tokens, targets):
    """The list-wise hinge with rewards, and the generation term of the positives."""
    policy = list_scores(model, tokens, targets)
    with torch.no_grad():
        old = list_scores(reference, tokens, targets)
    implicit = BETA * (policy - old)
    rewards = torch.tensor(REWARDS, device=policy.device)
    excess = (implicit[:, 1:] - implicit[:, :1] + DELTA).relu() / (rewards[0] - rewards[1:])
    term = functional.softplus(torch.logsumexp(excess, 1))
    return (term - ALPHA * policy[:, 0]).mean()


class Trainer:
    """A model, its optimizer and one batch on `device`."""

    def __init__(self, settings: dict):
        torch.manual_seed(0)
        self.device = torch.device(settings["device"])
        rng = np.random.default_rng(0)
        size, length, target = settings["batch"], settings["length"], settings["target"]
        shape = (size, len(REWARDS), target) if settings["stage"] == "rwr" else (size, target)
        self.batch = [
            torch.from_numpy(rng.integers(2, settings["sizes"]["vocab_size"], drawn)).to(
                self.device
            )
            for drawn in ((size, length), shape)
        ]
        model = t5(settings["sizes"], settings["checkpointing"]).to(self.device)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        if settings["stage"] == "rwr":
            reference = copy.deepcopy(model).eval().requires_grad_(False)
            self.eager = lambda *batch: rwr_loss(model, reference, *batch)
        else:
            self.eager = lambda *batch: pretrain_loss(model, *batch)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )
        self.loss, self.how = self._faster()

    def _faster(self):
        """The faster loss function, compiled or not, and its description."""
        compiled = torch.compile(self.eager, dynamic=False)
        self.steps(1, self.eager)
        slow = self.steps(1, self.eager) > 2000
        try:
            self.steps(2, compiled)
        except Exception as error:  # the compiler raises many kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(f"torch.compile fails: {reason[0]}", file=sys.stderr)
            return self.eager, "eager (compiling fails)"
        steps = 1 if self.device.type == "cpu" else 10
        # In turn, and the best of each, against noise from other load.
        times = [
            (self.steps(steps, compiled), self.steps(steps, self.eager))
            for _ in range(1 if slow else 3)
        ]
        with_compile, without = (min(column) for column in zip(*times, strict=True))
        return (compiled, "compiled") if with_compile < without else (self.eager, "eager (faster)")

    def steps(self, count: int, loss=None) -> float:
        """The mean milliseconds of `count` steps."""
        loss = loss or self.loss
        self._wait()
        began = time.perf_counter()
        for _ in range(count):
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"
            ):
                value = loss(*self.batch)
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        spent = 1000 * (time.perf_counter() - began) / count
        if not torch.isfinite(value):
            raise ValueError(f"the loss is {float(value)}")
        return spent

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def matmul_rate(size: int = 2048, times: int = 10) -> float:
    """FLOP/s of the fastest of `times` products of two square float32 matrices."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def main(settings: dict) -> None:
    """Writes replies to the original standard output; libraries print to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    torch.set_num_threads(settings["threads"])
    if settings["stage"] == "matmul":
        answer(rate=matmul_rate())
        return
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this PyTorch sees no GPU")
    trainer = Trainer(settings)
    answer(how=f"torch {torch.__version__}, {trainer.how}", parameters=trainer.parameters)
    for line in sys.stdin:
        answer(milliseconds=trainer.steps(int(line)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
