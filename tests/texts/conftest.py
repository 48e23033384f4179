"""A tiny pretrained model, and tiny tagged files."""

import pytest
import torch

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fly", "me", "to", "rome", "un", "##aff", "##able", "oslo", "go", ","]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A small BERT with random weights and its tokenizer, as save_pretrained writes them."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("tiny-bert")
    config = transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


WORDS = {"O": ["fly", "me", "to", "go"], "B-CITY": ["rome", "oslo"], "B-DAY": ["monday", "friday"]}


@pytest.fixture
def flights(tmp_path):
    """Sentences like "fly to rome on friday" with slots, and whether they name a day, which is a job for both."""
    generator = torch.Generator().manual_seed(0)

    def draw(choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    rows = []
    for _ in range(240):
        tags = [draw(["O", "O", "B-CITY", "B-DAY"]) for _ in range(int(torch.randint(1, 9, (1,), generator=generator)))]
        rows.append({"words": [draw(WORDS[tag]) for tag in tags], "slots": tags, "dated": "B-DAY" in tags})
    return rows
