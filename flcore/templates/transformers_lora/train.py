"""LoRA adapters of a language model (Transformers, PEFT): the base stays at each site, and only the adapters travel."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

import flcore

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz"
CONTEXT = 32

# YOUR OWN CODE GOES HERE: the texts of a site, its tokenizer, and the base model, such as
# AutoModelForCausalLM.from_pretrained(DIRECTORY). This base is a tiny GPT-2 that is made here, with random weights.
TEXTS = (
    "the rain comes down on the hills in the north and the river is high\n",
    "the sun burns on the plains in the south and the river is dry\n",
    "the wind blows from the sea in the west and the river is slow\n",
)


def load(site: flcore.Site) -> torch.Tensor:
    """Return the text of a site as tokens."""
    return torch.tensor([CHARACTERS.index(character) for character in 20 * TEXTS[site.index % len(TEXTS)]])


def base_model() -> GPT2LMHeadModel:
    """Return the base model. All sites must have the same one, so it is drawn from a fixed seed."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(CHARACTERS), "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    # Random embeddings stay as they are: they have to differ enough for the adapters to tell characters apart.
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0, initializer_range=0.2))


def with_adapters(seed: int) -> Any:
    """Return the base model, frozen, with trainable adapters."""
    base = base_model()
    torch.manual_seed(seed)
    places = ["c_attn", "c_proj", "c_fc"]
    return get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=places, fan_in_fan_out=True))


def initial_model(seed: int) -> dict[str, Any]:
    """Return the first global model: the adapters alone."""
    return dict(get_peft_model_state_dict(with_adapters(seed)))


class Client:
    """One site: it keeps the base model and its own text."""

    def __init__(self, site: flcore.Site) -> None:
        self.tokens, self.net = load(site), with_adapters(site.seed)

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        """Train the adapters on random pieces of the text."""
        self.set_adapters(model)
        settings, rng = task.hyperparameters, torch.Generator().manual_seed(task.seed)
        optimizer = torch.optim.AdamW(
            (each for each in self.net.parameters() if each.requires_grad), lr=settings["learning_rate"]
        )
        loss = torch.zeros(())
        for _ in range(settings["steps"]):
            starts = torch.randint(len(self.tokens) - CONTEXT, (settings["batch_size"],), generator=rng)
            optimizer.zero_grad()
            loss = self.loss(starts)
            loss.backward()
            optimizer.step()
        adapters = dict(get_peft_model_state_dict(self.net))
        return flcore.Update(adapters, weight=len(self.tokens), metrics={"train_loss": loss.item()})

    def validate(self, model: flcore.Arrays, _: flcore.Task) -> flcore.Update:
        """Measure the global adapters on this site's text. Hold out a part of yours for this."""
        self.set_adapters(model)
        with torch.no_grad():
            loss = self.loss(torch.arange(0, len(self.tokens) - CONTEXT, CONTEXT))
        return flcore.Update(weight=len(self.tokens), metrics={"loss": loss.item()})

    def loss(self, starts: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the next token, in the pieces that begin at `starts`."""
        pieces = torch.stack([self.tokens[start : start + CONTEXT] for start in starts.tolist()])
        loss: torch.Tensor = self.net(input_ids=pieces, labels=pieces).loss
        return loss

    def set_adapters(self, model: flcore.Arrays) -> None:
        """Replace the adapters by those of a model: copies, because the arrays are read-only."""
        set_peft_model_state_dict(self.net, {name: torch.tensor(array) for name, array in model.items()})
